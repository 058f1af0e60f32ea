"""`eval.circuits` on a linear language model whose latents are known."""

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.evaluation.circuits import FOLDER, Circuits
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.subject import Examined
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.language_models.settings import Package
from fsae.language_models.sites import Site, SiteName
from tests.architectures import build
from tests.evaluation.causal.toy import EARLY, LATE, D, LinearModel, axes, subject
from tests.language_models.conftest import opened

OTHERS = ("near", "old")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of agreement: every first word with every two words after it."""
    lines = []
    for number in (0, 1):
        words, answers = ("one", "many"), (" sings", " sing")
        for i in range(8):
            rest = f"{OTHERS[i % 2]} {OTHERS[i // 2 % 2]}"
            clean, patch = f"{words[number]} {rest}", f"{words[1 - number]} {rest}"
            lines.append(
                json.dumps({
                    "clean_prefix": clean, "patch_prefix": patch,
                    "clean_answer": answers[number], "patch_answer": answers[1 - number],
                })
            )  # fmt: skip
    file = tmp_path_factory.mktemp("tasks") / "agreement.json"
    file.write_text("\n".join(lines))
    return str(file)


def circuits(task: str, **changes: Any) -> Circuits:
    return Circuits(tasks=[task], **({"pairs": 5, "size": 4, "sizes": [1, 40], "nodes": 6, "seeds": 2} | changes))


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported dictionary at the early site."""
    folder = tmp_path_factory.mktemp("early")
    save_saelens(axes().float(), folder / "sae", Provenance(hook_name=EARLY.hook_name))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def measured(task: str, neighbour: Path, run: Path) -> Measured:
    """The circuits over two sites, and their folder."""
    (found,) = circuits(task, others=[str(neighbour)]).measure(subject(Examined([axes().float()], folder=run)))
    found.folders[FOLDER](run / FOLDER)
    return found


def test_planted_latents_do_the_whole_task(measured: Measured):
    (numbers,) = measured.numbers
    assert numbers["faithfulness"] == pytest.approx(1, abs=0.1)
    assert numbers["completeness"] == pytest.approx(0, abs=0.1)
    assert abs(numbers["faithfulness_random"]) < 0.7
    assert numbers["circuit_error_share"] == pytest.approx(0, abs=1e-6)
    assert numbers["circuit_accuracy"] == 1
    assert numbers["circuit_pairs"] == 16
    assert numbers["circuit_sites"] == 2
    assert numbers.keys() <= Circuits.meanings.keys()
    assert {"faithfulness_noise", "completeness_noise"} <= numbers.keys()


def test_the_content_has_the_curve_of_each_task(measured: Measured):
    (member,) = measured.content["circuits"]
    assert member["sites"] == [str(EARLY), str(LATE)]
    (of_task,) = member["tasks"].values()
    curve = of_task["curve"]
    assert [point["size"] for point in curve] == [1, 4, 40]
    assert [point["threshold"] for point in curve] == sorted((point["threshold"] for point in curve), reverse=True)
    # Every node with an effect is in the largest circuit, and in the random one of that size.
    assert [curve[-1][name] for name in ("faithfulness", "faithfulness_random")] == pytest.approx([1, 1], abs=0.1)
    assert of_task["pairs_per_split"] == 5


def test_the_folder_has_the_graph_and_a_page(measured: Measured, run: Path):
    folder = run / FOLDER
    assert {path.name for path in folder.iterdir()} == {"agreement.json", "index.html", "measured.json"}
    graph = json.loads((folder / "agreement.json").read_text())
    assert graph["metadata"]["transcoder_list"] == [str(EARLY), str(LATE)]
    ids = [node["node_id"] for node in graph["nodes"]]
    assert {"0_0_0", f"0_{D}_0", "1_0_2", f"1_{D}_2"} <= set(ids)
    weights = {(link["source"], link["target"]): link["weight"] for link in graph["links"]}
    assert weights["0_0_0", "1_0_2"] > 0
    page = (folder / "index.html").read_text()
    assert "resid_post.0 latent 0" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_other_run_of_a_circuit_reads_what_was_measured(measured: Measured, task: str, neighbour: Path, run: Path):
    """At the early site, with the late one as its neighbour."""
    save_saelens(axes().float(), run / "sae", Provenance(hook_name=LATE.hook_name))
    model = LinearModel()
    of_early = subject(Examined([axes().float()], folder=neighbour), site=EARLY, model=model)
    (again,) = circuits(task, others=[str(run)]).measure(of_early)
    assert again.numbers == measured.numbers
    assert model.passes == 0
    again.folders[FOLDER](neighbour / FOLDER)
    assert (neighbour / FOLDER / "agreement.json").read_bytes() == (run / FOLDER / "agreement.json").read_bytes()


def test_other_settings_are_measured_again(measured: Measured, task: str, neighbour: Path, run: Path):
    model = LinearModel()
    of_run = subject(Examined([axes().float()], folder=run), model=model)
    circuits(task, others=[str(neighbour)], size=5).measure(of_run)
    assert model.passes > 10


def test_a_population_has_circuits_of_each_member(task: str, tmp_path: Path):
    (found,) = circuits(task, seeds=1).measure(subject(Examined([axes().float(), axes().float()])))
    first, second = found.numbers
    assert first == second
    found.folders[FOLDER](tmp_path / FOLDER)
    assert {path.name for path in (tmp_path / FOLDER).glob("*-*")} == {"0-agreement.json", "1-agreement.json"}


def test_two_dictionaries_at_one_site_are_refused(task: str, run: Path):
    save_saelens(axes().float(), run / "sae", Provenance(hook_name=LATE.hook_name))
    with pytest.raises(ValueError, match=r"are both at resid_post\.1; leave one of them out"):
        circuits(task, others=[str(run)]).measure(subject(Examined([axes().float()], folder=run)))


def test_a_dictionary_of_another_width_is_refused(task: str, tmp_path: Path):
    save_saelens(axes(3).float(), tmp_path / "sae", Provenance(hook_name=EARLY.hook_name))
    with pytest.raises(ValueError, match=r"reads vectors of width 3, and resid_post\.0 of model linear has width 4"):
        circuits(task, others=[str(tmp_path)]).measure(subject(Examined([axes().float()])))


def test_a_model_without_single_tokens_is_refused_before_any_pass():
    model = LinearModel()
    with pytest.raises(ValueError, match=r"model linear can do none of the tasks .*simple: no answer is one token"):
        Circuits().measure(subject(Examined([axes().float()]), model=model))
    assert model.passes == 0


def test_a_model_that_answers_wrongly_is_refused(task: str, tmp_path: Path):
    lines = [json.loads(line) for line in Path(task).read_text().splitlines()]
    swapped = [each | {"clean_answer": each["patch_answer"], "patch_answer": each["clean_answer"]} for each in lines]
    wrong = tmp_path / "wrong.json"
    wrong.write_text("\n".join(map(json.dumps, swapped)))
    with pytest.raises(ValueError, match=r"answers both prompts of 0 of 16 pairs right, and 12 are needed"):
        circuits(str(wrong)).measure(subject(Examined([axes().float()])))


def test_a_task_that_cannot_be_measured_is_left_out(task: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        both = replace(circuits(task, seeds=1), tasks=["pronoun", task])
        (found,) = both.measure(subject(Examined([axes().float()])))
    assert "circuits are found for the other tasks alone: pronoun: no answer is one token" in caplog.text
    (member,) = found.content["circuits"]
    assert list(member["tasks"]) == [task]


def test_circuits_of_a_transformer(tmp_path: Path):
    """The tiny model on pairs whose answers are its own, over two sites, one of which has a skip connection."""
    model = opened(Package.tiny)
    letters = [chr(code) for code in range(ord("A"), ord("z")) if chr(code).isalpha()]
    ids = torch.tensor([model.tokenise([letter])[0][0] for letter in letters])
    lines = []
    for first, second in pairwise(letters):
        prompts = [f"ab {first}", f"ab {second}"]
        best = model.logits(torch.tensor(model.tokenise(prompts)))[:, -1][:, ids].argmax(1)
        one, other = (letters[number] for number in best)
        lines.append(
            json.dumps({
                "clean_prefix": prompts[0], "patch_prefix": prompts[1], "clean_answer": one, "patch_answer": other,
            })
        )  # fmt: skip
    (tmp_path / "letters.json").write_text("\n".join(lines))
    early, late = (Site(name=name, layer=1) for name in (SiteName.resid_mid, SiteName.resid_post))
    width = model.width(early)
    save_saelens(build("topk", width, 40), tmp_path / "early" / "sae", Provenance(hook_name=early.hook_name))
    of_late = subject(Examined([build("gated", width, 40).eval()], folder=tmp_path / "late"), site=late, model=model)
    several = circuits(
        str(tmp_path / "letters.json"), others=[str(tmp_path / "early")], pairs=12, size=30, sizes=[10**6], seeds=1
    )
    (found,) = several.measure(of_late)
    (member,) = found.content["circuits"]
    (of_task,) = member["tasks"].values()
    assert member["sites"] == [str(early), str(late)]
    # All nodes with an effect do the task, up to those that are on in none of the pairs that effects are measured on.
    assert of_task["curve"][-1]["faithfulness"] == pytest.approx(1, abs=0.3)
    found.folders[FOLDER](tmp_path / FOLDER)
    graph = json.loads((tmp_path / FOLDER / "letters.json").read_text())
    # The two sites of one block have layers of their own; edges go from the first to the second, and on to the outcome.
    layers = {node["node_id"]: int(node["layer"]) for node in graph["nodes"]}
    assert {layers[link["target"]] - layers[link["source"]] for link in graph["links"]} == {1}


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="tasks is empty; name a task, as in"):
        Circuits(tasks=[])
