from importlib.util import find_spec

import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.probe import Probe
from fsae.evaluation.downstream.probe_ablation import DecodedTexts, ProbedRows
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.tpp import Tpp, TppData, class_rows, tpp_scores
from fsae.outputs.results import Better, Shown
from tests.evaluation.downstream.planted import measured, planted, random, text_of
from tests.evaluation.downstream.test_hub_texts import write


def settings(folder, **changes) -> Tpp:
    given = {"n": [1, 2, 5], "train": 600, "test": 40, "repeats": 2, "sets": ["bias_in_bios_1"]}
    return Tpp(data=TppData.hub, path=str(folder), **(given | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Biographies of five professions, each with characters of its own kind."""
    generator = np.random.default_rng(0)
    rows = [
        {"hard_text": text_of([kind], generator), "profession": profession, "gender": 0}
        for kind, profession in enumerate((0, 1, 2, 6, 9))
        for _ in range(330)
    ]
    folder = tmp_path_factory.mktemp("hub")
    write(folder, "bias_in_bios", rows)
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[Measured]:
    return measured(settings(folder), planted(), random())[0]


def test_the_loss_of_the_class_itself_grows_with_the_latents(found):
    numbers = found[0].numbers[0]
    assert numbers.keys() == {f"tpp_n{count}{suffix}" for count in (2, 5) for suffix in ("", "_noise", "_random")}
    assert 0.05 < numbers["tpp_n2"] < 0.2
    assert numbers["tpp_n5"] > 0.25


def test_a_latent_per_class_has_the_highest_score_for_ideal_probes_and_random_directions_next_to_none():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    vectors = generator.normal(size=(200, 32)) * 0.1
    vectors[np.arange(200), labels] += 1
    rows = {
        str(label): ProbedRows(np.arange(200), np.arange(200), (labels == label) * 1, (labels == label) * 1)
        for label in range(4)
    }
    probes = {str(label): Probe(np.eye(32)[label], -0.5, 1.0, 1.0) for label in range(4)}
    directions = generator.normal(size=(32, 32)) / 32**0.5
    scores = []
    for each in (np.eye(32), directions):
        codes = np.maximum(vectors @ each.T, 0)
        scores.append(tpp_scores(DecodedTexts(vectors, csr_array(codes), each), probes, rows, [1])["tpp"][0])
    # A quarter of the texts are of a class.
    assert scores[0] == pytest.approx(0.25, abs=0.01)
    assert abs(scores[1]) < 0.02


def test_each_data_set_has_both_parts_of_its_scores(found):
    (of_sets,) = found[0].content["tpp_sets"]
    scores = of_sets["bias_in_bios_1"]
    assert scores["tpp"]["1"] == pytest.approx(scores["intended"]["1"] - scores["unintended"]["1"], abs=2e-6)
    assert abs(scores["unintended"]["1"]) < 0.05


def test_scores_by_hand():
    # Three classes; latent i is class i, and the probe of class 1 also reads latent 0.
    labels = np.array([0, 0, 1, 1, 2, 2])
    codes = np.eye(3)[labels]
    texts = DecodedTexts(codes.astype(float), csr_array(codes), np.eye(3))
    rows = {
        str(label): ProbedRows(np.arange(6), np.arange(6), (labels == label) * 1, (labels == label) * 1)
        for label in range(3)
    }
    probes = {
        "0": Probe(np.array([1.0, 0, 0]), -0.5, 1.0, 1.0),
        "1": Probe(np.array([-1.0, 1, 0]), -0.5, 1.0, 1.0),
        "2": Probe(np.array([0, -0.8, 0.2]), 0.5, 1.0, 1.0),
    }
    # Probe 2 is right about class 2 and about class 1, and wrong about both texts of class 0: 4 of 6. Without latent 1
    # it says 2 of everything and is right about 2 of 6.
    found = tpp_scores(texts, probes, rows, [1])
    # Of each class its own latent is ablated. 0 and 1 lose both own texts: 2 of 6. Probe 2 loses nothing, as its logit
    # stays 0.5 without latent 2. Ablating latent 1 costs probe 2 a third, so 1/6 as a mean of two.
    np.testing.assert_allclose(found["intended"], [(1 / 3 + 1 / 3 + 0) / 3])
    np.testing.assert_allclose(found["unintended"], [(0 + 1 / 6 + 0) / 3])
    np.testing.assert_allclose(found["tpp"], [(1 / 3 + 1 / 6) / 3])


def test_a_class_has_as_many_rows_as_all_others_and_no_row_in_both_parts():
    labels = np.repeat([0, 1, 2], 20)
    rows = class_rows(labels, 9, 5, 0)
    assert len(rows) == 3
    for label, own in enumerate(rows):
        assert (own.train_labels == (labels[own.train] == label)).all()
        assert (own.test_labels == (labels[own.test] == label)).all()
        assert (own.train_labels.sum(), len(own.train), own.test_labels.sum(), len(own.test)) == (9, 18, 5, 10)
    train = {row for own in rows for row in own.train.tolist()}
    assert not train & {row for own in rows for row in own.test.tolist()}


def test_a_dead_dictionary_has_no_random_control(folder):
    dead = random()
    dead.get_parameter("b_enc").data.fill_(-1e6)
    (found,), _ = measured(settings(folder, train=20, test=10), dead)
    assert found.numbers[0] == dict.fromkeys(("tpp_n2", "tpp_n2_noise", "tpp_n5", "tpp_n5_noise"), 0)


def test_no_table_shows_it_and_nothing_ranks_by_it():
    for meaning in Tpp.meanings.values():
        assert (meaning.better, meaning.shown) == (Better.neither, Shown.files)
    assert "arXiv 2605.18229" in Tpp.meanings["tpp_n10"].text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": []}, r"eval\.tpp\.n is empty"),
        ({"sets": ["bios"]}, r"sets has 'bios'; with eval\.tpp\.data=packaged the sets are 97_news_class, 101_dis"),
        ({"path": "copies"}, r"path is 'copies', which is for eval\.tpp\.data=hub"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Tpp(**changes)


def test_too_few_latents_or_texts_are_refused(folder):
    with pytest.raises(ValueError, match=r"eval\.tpp\.n has 500, and the dictionary has 64 latents.*n=\[2\]"):
        measured(settings(folder, n=[2, 500]), random())
    with pytest.raises(
        ValueError, match=r"bias_in_bios_1 has .* texts of a class, and 400 are needed; lower eval\.tpp"
    ):
        measured(settings(folder, train=600, test=200), random())


@pytest.mark.skipif(find_spec("sae_probes") is None, reason="sae-probes is not installed")
def test_packaged_texts_suffice_for_the_default():
    evaluation = Tpp()
    assert [each.name for each in evaluation._sets()] == ["97_news_class", "101_disease_class"]
