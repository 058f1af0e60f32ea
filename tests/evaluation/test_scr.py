import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.probe import Probe
from fsae.evaluation.downstream.probe_ablation import DecodedTexts, ProbedRows
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.scr import Scr, ScrData, pair_rows, scr_scores
from fsae.outputs.results import Better, Shown
from tests.evaluation.downstream.planted import measured, planted, random, text_of
from tests.evaluation.downstream.test_hub_texts import write

PAIRS = ("bias_in_bios_professor_nurse", "bias_in_bios_surgeon_psychologist")


def settings(folder, **changes) -> Scr:
    given = {"n": [1, 2, 5], "train": 400, "test": 40, "repeats": 2, "sets": ["bias_in_bios"]}
    return Scr(data=ScrData.hub, path=str(folder), **(given | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Biographies: kinds 0 and 1 of characters are professions, kinds 2 and 3 are genders."""
    generator, rows = np.random.default_rng(0), []
    for positive, negative in ((21, 13), (1, 11), (25, 22), (2, 26)):
        for place, profession in enumerate((positive, negative)):
            for gender in (0, 1):
                texts = (text_of([place, 2 + gender], generator) for _ in range(340))
                rows += [{"hard_text": text, "profession": profession, "gender": gender} for text in texts]
    folder = tmp_path_factory.mktemp("hub")
    write(folder, "bias_in_bios", rows)
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[Measured]:
    return measured(settings(folder), planted(), random())[0]


def test_latents_of_one_attribute_each_repair_a_biased_probe(found):
    planted_numbers, random_numbers = (each.numbers[0] for each in found)
    # Early probes of SAEBench's training keep it below 1, even for one latent per attribute.
    assert planted_numbers["scr_n2"] > 0.4
    assert random_numbers["scr_n2"] < 0.2
    assert planted_numbers["scr_n2_random"] < 0.2
    assert {f"scr_n{count}{suffix}" for count in (2, 5) for suffix in ("", "_noise", "_random")} == {*planted_numbers}


def test_each_pair_has_its_scores_in_both_directions(found):
    (of_pairs,) = found[0].content["scr_pairs"]
    assert set(PAIRS) < set(of_pairs)
    assert len(of_pairs) == 4
    assert {kind: list(own) for kind, own in of_pairs[PAIRS[0]].items()} == {
        kind: ["1", "2", "5"] for kind in ("scr", "dir1", "dir2")
    }


def test_a_second_dictionary_needs_no_language_model(folder, tmp_path):
    short = settings(folder, train=40, test=8, repeats=1)
    first, read = measured(short, random(), kept=tmp_path)
    second, read_again = measured(short, random(), kept=tmp_path)
    assert read > 0
    assert read_again == 0
    assert first[0].numbers == second[0].numbers
    assert not [name for name in first[0].numbers[0] if name.endswith("_noise")]


def quadrants() -> tuple[DecodedTexts, dict[str, ProbedRows]]:
    """Texts of the quadrants (1, 1), (1, 0), (0, 1), (0, 0); latent 0 is the first attribute, latent 1 the second."""
    attributes = np.array([(1, 1), (1, 0), (0, 1), (0, 0)])
    vectors = attributes.astype(float)
    texts = DecodedTexts(vectors, csr_array(vectors), np.eye(2))
    every = np.arange(4)
    rows = {
        name: ProbedRows(every, every, attributes[:, place], attributes[:, place])
        for name, place in (("first", 0), ("second", 1), ("biased", 0))
    }
    return texts, rows


def test_scores_by_hand():
    # The biased probe adds the first attribute and twice the second one.
    texts, rows = quadrants()
    probes = {
        "first": Probe(np.array([1.0, 0.1]), -0.5, 1.0, 1.0),
        "second": Probe(np.array([0.1, 1.0]), -0.5, 1.0, 1.0),
        "biased": Probe(np.array([1.0, 2.0]), -0.9, 1.0, 1.0),
    }
    found = scr_scores(texts, probes, rows, [1, 2])
    # Accuracy for the first attribute: 3 of 4 with the bias (it says 1 of (0, 1)), all without latent 1. For the second
    # one: 3 of 4 (it says 1 of (1, 0)), all without latent 0. The other latent differs between no classes and stays.
    assert found["dir1"].tolist() == [1, 1]
    assert found["dir2"].tolist() == [1, 1]
    # Both directions begin at the same accuracy.
    assert found["scr"].tolist() == [1, 1]


def test_the_direction_in_which_the_biased_probe_is_worse_counts():
    texts, rows = quadrants()
    # The biased probe reads the second attribute alone: it is right about it, and half right about the first one.
    probes = {
        "first": Probe(np.array([1.0, 0.0]), -0.5, 1.0, 1.0),
        "second": Probe(np.array([0.0, 1.0]), -0.5, 1.0, 1.0),
        "biased": Probe(np.array([0.0, 1.0]), -0.5, 1.0, 1.0),
    }
    found = scr_scores(texts, probes, rows, [1])
    # Without latent 1 the biased probe says 0 of all: as good as before. Nothing is to be repaired for the second one.
    assert found["dir1"].tolist() == [0]
    assert found["dir2"].tolist() == [0]
    assert found["scr"] is found["dir1"]


def test_rows_are_of_one_part_and_balanced():
    attributes = np.repeat(np.array([(1, 1), (1, 0), (0, 1), (0, 0)]), [12, 6, 6, 12], axis=0)
    rows = pair_rows(attributes, 4, 2, 0)
    train = {row for each in rows.values() for row in each.train.tolist()}
    test = {row for each in rows.values() for row in each.test.tolist()}
    assert not train & test
    assert len(rows["first"].train) == len(rows["biased"].train) == 16
    assert len(rows["first"].test) == len(rows["biased"].test) == 8
    counts = np.unique(attributes[rows["second"].train], axis=0, return_counts=True)[1]
    assert counts.tolist() == [4, 4, 4, 4]
    assert (attributes[rows["biased"].train, 0] == attributes[rows["biased"].train, 1]).all()


def test_no_table_shows_it_and_nothing_ranks_by_it():
    for meaning in Scr.meanings.values():
        assert (meaning.better, meaning.shown) == (Better.neither, Shown.files)
    assert "arXiv 2605.18229" in Scr.meanings["scr_n10"].text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": []}, r"eval\.scr\.n is empty"),
        ({"sets": ["bios"]}, r"sets has 'bios'; with eval\.scr\.data=hub the sets are bias_in_bios, amazon_reviews"),
        ({"data": ScrData.packaged, "sets": []}, r"path is .* which is for eval\.scr\.data=hub"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    given = {"data": ScrData.hub, "path": str(tmp_path)} | changes
    with pytest.raises(ValueError, match=message):
        Scr(**given)


def test_too_few_latents_or_texts_are_refused(folder):
    with pytest.raises(ValueError, match=r"eval\.scr\.n has 500, and the dictionary has 64 latents.*n=\[2\]"):
        measured(settings(folder, n=[2, 500]), random())
    with pytest.raises(ValueError, match=r"eval\.scr: data set bias_in_bios_professor_nurse has 340 texts of.*400 are"):
        measured(settings(folder, train=400, test=400), random())
