from pathlib import Path
from typing import Any, cast

import pyarrow
import pyarrow.parquet
import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation import concepts
from fsae.evaluation.concepts import Concepts
from fsae.evaluation.downstream.concept_detectors import directions
from fsae.evaluation.downstream.concept_steering import Steering
from tests.evaluation.downstream.texts import Text, subject_on
from tests.evaluation.downstream.words import CONCEPTS, D_IN, OTHERS, OWN, WordModel
from tests.latents.chat_server import ChatServer


def texts_of(draw: torch.Generator) -> list[tuple[str, str, str, str, int]]:
    """Rows in AxBench's layout: a hard negative is a word of another concept."""

    def text(*own: str) -> str:
        others = [OTHERS[int(torch.randint(len(OTHERS), (), generator=draw))] for _ in range(8)]
        place = 1 + int(torch.randint(7, (), generator=draw))
        return " ".join([*others[:place], *own, *others[place:]])

    rows = []
    for number, concept in enumerate(CONCEPTS):
        other = CONCEPTS[1 - number]
        for i in range(48):
            rows.append(("", text(OWN[concept][i % 4]), concept, "positive", number))
            rows.append(("", text(), concept, "negative", number))
        rows += [("", text(OWN[other][i]), concept, "hard negative", number) for i in range(4)]
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts")
    names = ("input", "output", "output_concept", "category", "concept_id")
    columns = zip(*texts_of(torch.Generator().manual_seed(1)), strict=True)
    table = pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
    pyarrow.parquet.write_table(table, path / "all.parquet")
    return path


def dictionary(knows: bool = True) -> Autoencoder:
    """A latent per dimension; one that knows no concept has none of the first two dimensions."""
    autoencoder = StandardSettings(d_sae=2 * D_IN).build(D_IN, torch.Generator()).eval()
    rows = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    if not knows:
        rows = rows.roll(2, dims=1) * (torch.arange(D_IN) >= 2)
        rows[[0, 1, D_IN, D_IN + 1]] = torch.eye(D_IN)[2]
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
        autoencoder.b_dec.zero_()
        autoencoder.get_parameter("b_enc").zero_()
    return autoencoder


def settings(folder: Path, **changes: Any) -> Concepts:
    own = {"path": str(folder), "splits": 2, "steered": 2, "strengths": [1.0, 2.0, 4.0], "generated": 10}
    return Concepts(**{**own, "prompts": [f"{word} {OTHERS[0]}" for word in OTHERS[:6]], **changes})


def measured(
    evaluation: Concepts, *autoencoders: Autoencoder, kept_in: Path | None = None
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    text = Text(kept_in)
    text.model = cast(Any, WordModel())
    found = evaluation.measure(subject_on(text, autoencoders))
    return [dict(each.numbers[0]) for each in found], [each.content["concepts"][0] for each in found]


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Numbers of a dictionary that knows the concepts, and of one that does not."""
    return measured(settings(folder), dictionary(), dictionary(knows=False))


def test_a_planted_latent_detects_its_concept_and_is_not_misled(found):
    (numbers, without), (concepts, _) = found
    assert numbers["concepts_auroc"] == 1
    assert numbers["concepts_auroc_noise"] == 0
    assert numbers["concepts_hard"] == 1
    assert [concepts[name]["latent"] for name in CONCEPTS] == [0, 1]
    assert numbers["concepts_auroc_diffmean"] > 0.9
    # Latents of other dimensions were chosen on half of the texts and are at chance on the others.
    assert without["concepts_auroc"] == pytest.approx(0.5, abs=0.15)
    assert without["concepts_auroc_probe"] == numbers["concepts_auroc_probe"]
    assert numbers["concepts_count"] == 2
    asked_for = {name for name in Concepts.meanings if name.startswith("concepts_judge") or name.endswith("_reft")}
    assert numbers.keys() == Concepts.meanings.keys() - asked_for


def test_a_planted_latent_steers_towards_its_concept(found):
    (numbers, without), (concepts, _) = found
    assert numbers["concepts_steering_concept"] > 0.8
    assert numbers["concepts_steering"] > max(without["concepts_steering"], numbers["concepts_steering_random"])
    assert numbers["concepts_likelihood"] > 0.03 > without["concepts_likelihood"]
    assert numbers["concepts_detector"] > 0.8
    texts = concepts["birds"]["steering"]["latent"]["texts"]
    assert all(set(text.split()) & set(OWN["birds"]) for text in texts)


def test_a_trained_direction_is_measured_next_to_the_others(folder: Path, found):
    (numbers,), (concepts,) = measured(settings(folder, reft_epochs=1), dictionary())
    trained = {name for name in Concepts.meanings if name.endswith("_reft")} - {"concepts_judge_reft"}
    assert numbers.keys() == found[0][0].keys() | trained
    assert {name: numbers[name] for name in found[0][0]} == found[0][0]
    assert concepts["birds"]["auroc"].keys() >= {"latent", "reft", "random"}
    assert concepts["birds"]["steering"].keys() == {"latent", "reft", "random", "diffmean"}


def test_concepts_without_hard_negatives_are_left_out_of_their_number(folder: Path, tmp_path: Path, found):
    rows = pyarrow.parquet.read_table(folder / "all.parquet").to_pylist()
    for left_out, has_number in ((["ships"], True), (list(CONCEPTS), False)):
        kept = [row for row in rows if row["category"] != "hard negative" or row["output_concept"] not in left_out]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kept), tmp_path / "some.parquet")
        (numbers,), _ = measured(settings(tmp_path, steered=0), dictionary())
        assert ("concepts_hard" in numbers) == has_number
        assert numbers["concepts_auroc"] == 1
    assert numbers.keys() < found[0][0].keys()


def test_steering_may_be_left_out(folder: Path):
    (numbers,), _ = measured(settings(folder, steered=0), dictionary())
    assert not any("steering" in name for name in numbers)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="set both, or none"):
        Concepts(judge="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match=r"has 1 prompts and 4 strengths; steering needs two prompts"):
        Concepts(prompts=["Once"])


def test_a_judge_that_is_down_is_refused_before_the_model_runs(folder: Path):
    evaluation = settings(folder, judge="http://127.0.0.1:9/v1", judge_model="judge")
    with pytest.raises(ValueError, match="cannot be reached"):
        measured(evaluation, dictionary())


def test_a_judge_rates_the_texts_that_were_scored_and_may_fail_later(folder: Path):
    with ChatServer(lambda body: "2") as server:
        evaluation = settings(folder, judge=server.url, judge_model="judge")
        (numbers,), _ = measured(evaluation, dictionary())
        # Two concepts, three kinds of vectors, six prompts, three questions each; equal texts are asked about once.
        assert 2 < len(server.bodies) <= 1 + 2 * 3 * 6 * 3
    assert numbers.keys() == Concepts.meanings.keys() - {name for name in Concepts.meanings if name.endswith("_reft")}
    assert [numbers[f"concepts_judge{each}"] for each in ("", "_random", "_diffmean")] == [2, 2, 2]
    asked = []
    with ChatServer(lambda body: (asked.append(1), "2")[1] if not asked else (403, {}, "enough")) as server:
        (numbers,), _ = measured(settings(folder, judge=server.url, judge_model="judge"), dictionary())
    # What was measured without the judge stays.
    assert "concepts_judge" not in numbers
    assert numbers["concepts_auroc"] == 1


def test_too_few_texts_are_refused_before_the_model_runs(folder: Path, tmp_path: Path):
    table = pyarrow.parquet.read_table(folder / "all.parquet").slice(0, 12)
    pyarrow.parquet.write_table(table, tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"eval\.concepts: concept 'birds' has 6 positive texts, and 8 are needed"):
        measured(settings(tmp_path), dictionary())
    with pytest.raises(ValueError, match=r"eval\.concepts: eval\.concepts\.path: .*matches no parquet file|no file"):
        measured(settings(tmp_path / "none"), dictionary())


def test_a_further_dictionary_shares_what_owes_nothing_to_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fitted, generated, generate = list[int](), list[int](), Steering._generated
    monkeypatch.setattr(concepts, "directions", lambda *data: fitted.append(1) or directions(*data))
    monkeypatch.setattr(
        Steering, "_generated", lambda steering, rows, shifts: generated.append(1) or generate(steering, rows, shifts)
    )
    own = settings(folder, splits=1, steered=1, strengths=[2.0], generated=4)
    found = [measured(own, dictionary(), kept_in=kept_in) for kept_in in (None, tmp_path)]
    # The plain texts, and those of two controls and of the latent.
    assert len(generated) == 2 * (1 + 2 + 1)
    assert found[1] == found[0]
    before = len(fitted)
    assert measured(own, dictionary(), kept_in=tmp_path) == found[0]
    # Directions for the steering of one concept are fitted; those of the two detectors are kept.
    assert before == 2 * (2 + 1)
    assert len(fitted) == before + 1
    assert len(generated) == 8
    measured(own, dictionary(knows=False), kept_in=tmp_path)
    assert len(generated) == 9
