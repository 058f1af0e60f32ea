import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsae.evaluation import probing
from fsae.evaluation.downstream.k_sparse import Protocol, residual_probe
from fsae.evaluation.downstream.packaged_texts import DOUBTFUL, packaged_names
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.probing import CHOSEN, NAMED, Probing, ProbingData
from tests.evaluation.downstream.labels import CLASSES, known_latents, measured, random_latents, some_text

ROWS = 200


def write(folder: Path, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Path:
    """Texts of random letters, whose last one is of the class."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        label = number % len(classes)
        before = "".join(generator.choice(list("ijklmnopqr "), size=6))
        rows.append({"text": before + generator.choice(list(classes[label])), "label": label} | changes)
    path = folder / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(path: Path, **changes: Any) -> Probing:
    given: dict[str, Any] = {"k": [1, 16], "train": 130, "test": 60, "repeats": 2}
    return Probing(data=ProbingData.files, path=str(path), **(given | changes))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    path = write(tmp_path_factory.mktemp("texts"))
    difficult = settings(path, scarce=[4, 13], imbalanced=[0.25], mislabelled=[0.1])
    return measured(difficult, known_latents(), random_latents())


def test_a_latent_of_the_label_is_found_and_random_ones_know_less(found: list[Measured]):
    known, random = (each.numbers[0] for each in found)
    assert known["probing_auc_k1"] == 1
    assert known["probing_auc_k1_noise"] == 0
    assert random["probing_auc_k1"] < 0.9
    assert random["probing_auc_k1_noise"] > 0


def test_controls_are_next_to_the_number(found: list[Measured]):
    known, random = (each.numbers[0] for each in found)
    assert known["probing_auc_k1_random"] < known["probing_auc_k1"]
    # A character's identity and its vector decide the label; the words are those of all characters.
    assert known["probing_auc_k16_residual"] > 0.95
    assert known["probing_auc_k16_token"] == 1
    assert known["probing_auc_k16_difference"] > 0.8
    # Controls that owe nothing to a dictionary are the same for each.
    shared = [name for name in known if name.endswith(("_residual", "_difference", "_token", "_words", "_neurons"))]
    assert {name: known[name] for name in shared} == {name: random[name] for name in shared}


def test_every_number_of_a_named_k_and_of_a_case_is_there(found: list[Measured]):
    others = ("accuracy", "k2", "k5", "k128")
    names = {name for name in Probing.meanings if not set(name.split("_")) & set(others)}
    assert found[0].numbers[0].keys() == names


def test_few_rows_are_worse_than_many(found: list[Measured]):
    (random,) = found[1].numbers
    assert random["probing_auc_scarce"] < random["probing_auc_k16"]
    assert found[0].numbers[0]["probing_auc_imbalanced"] > 0.9


def test_each_question_has_its_scores(found: list[Measured]):
    (of_dictionary,) = found[0].content["probing_sets"]
    (scores,) = of_dictionary.values()
    assert scores["latents"]["normal"][0] == 1
    assert set(scores["latents"]) == {"normal", "scarce 4", "scarce 13", "imbalanced 0.25", "mislabelled 0.1"}


def test_saebench_pools_all_tokens_and_counts_right_answers(tmp_path: Path):
    path = write(tmp_path, (*CLASSES, "0123456789"))
    evaluation = settings(path, protocol=Protocol.saebench, k=[1, 2, 5], train=60, test=40)
    (found,) = measured(evaluation, random_latents())
    numbers = found.numbers[0]
    assert {f"probing_accuracy_k{k}" for k in (1, 2, 5)} <= numbers.keys()
    assert not [name for name in numbers if "auc" in name]
    # Each of three classes against the others.
    assert len(found.content["probing_sets"][0]) == 3
    assert numbers["probing_accuracy_k16_residual"] > 0.8


def test_a_second_dictionary_needs_no_language_model(tmp_path: Path):
    path, kept = write(tmp_path), tmp_path / "kept"
    first, second = some_text(kept), some_text(kept)
    before, after = (measured(settings(path), random_latents(), text=text)[0].numbers[0] for text in (first, second))
    assert first.model.tokens_read > 0
    assert second.model.tokens_read == 0
    assert before == after


def test_a_dead_dictionary_is_at_chance_and_has_no_random_control(tmp_path: Path):
    dead = random_latents()
    dead.get_parameter("b_enc").data.fill_(-1e6)
    numbers = measured(settings(write(tmp_path)), dead)[0].numbers[0]
    assert numbers["probing_auc_k1"] == 0.5
    assert "probing_auc_k1_random" not in numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "target"}, r"no column 'target'.*set eval\.probing\.label_column"),
        ({"path": "/no/such/folder"}, r"eval\.probing\.path: there is no file or folder"),
    ],
)
def test_a_data_set_without_its_column_or_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        measured(settings(Path(changes.pop("path", tmp_path / "texts.jsonl")), **changes), random_latents())


def test_a_set_of_code_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="sets has 'rust'; the sets of code are python_or_c"):
        measured(Probing(data=ProbingData.code, sets=["rust"]), random_latents())


def test_equal_labels_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="all 200 labels are 1"):
        measured(settings(write(tmp_path, label=1)), random_latents())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ProbingData.files}, "data=files needs a path"),
        ({"path": "x"}, "data=packaged and data=code have none"),
        ({"k": []}, "k is empty"),
        ({"scarce": [512]}, "scarce has 512, more than eval.probing.train=256"),
        ({"scarce": [8], "k": [1]}, "scarce is measured with 16 latents"),
        ({"mislabelled": [0.1], "protocol": Protocol.saebench}, "mislabelled is measured with 16 latents"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Probing(**changes)


@pytest.mark.skipif(find_spec("sae_probes") is None, reason="sae-probes is not installed")
def test_the_chosen_data_sets_are_in_the_package():
    assert len(set(CHOSEN)) == 24
    assert set(CHOSEN) <= set(packaged_names())
    assert not set(CHOSEN) & set(DOUBTFUL)
    assert set(NAMED) == set(Probing().k)


def test_a_further_dictionary_shares_the_scores_that_owe_nothing_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    monkeypatch.setattr(probing, "residual_probe", lambda *data: fitted.append(1) or residual_probe(*data))
    data = settings(write(tmp_path), repeats=1)
    texts = [some_text(None), *(some_text(tmp_path / "kept") for _ in range(2))]
    found = [measured(data, random_latents(), text=text)[0] for text in texts]
    assert found[0].numbers == found[1].numbers == found[2].numbers
    assert list(found[0].numbers[0]) == list(found[2].numbers[0])
    assert found[0].content == found[2].content
    # One question and one split, without a folder and with an empty one.
    assert len(fitted) == 2
    measured(replace(data, seed=1), random_latents(), text=texts[2])
    assert len(fitted) == 3
