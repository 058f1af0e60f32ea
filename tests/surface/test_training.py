"""`fsae.train`: the command's numbers, on the caller's own vectors."""

import json
import threading
import time
from _thread import interrupt_main
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fsae
from fsae.autoencoders.topk import TopKSettings
from fsae.losses.reconstruction import SquaredError
from fsae.outputs.metric_log import read_metrics
from fsae.sources.toy_clusters import ToyClustersSettings
from fsae.training.settings import AdamSettings
from tests.composition import composed
from tests.processes import finished
from tests.surface.vectors import D_IN, SHORT, sparse_features

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {"d_sae": 32},
    "gated": {"d_sae": 32},
    "jumprelu": {"d_sae": 32},
    "topk": {"d_sae": 32, "k": 4},
    "batch_topk": {"d_sae": 32, "k": 4},
    "abs_topk": {"d_sae": 32, "k": 4},
    "kmeans": {"d_sae": 32},
    "local_pca": {"d_sae": 32, "rank": 3},
    "pca": {"d_sae": 8},
}


def same(one: fsae.Dictionary, other: fsae.Dictionary) -> bool:
    pairs = zip(one.autoencoder.state_dict().values(), other.autoencoder.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def toy_points(points: int, held_out: int = 4096) -> Tensor:
    """Return all points of the command's toy source, training points first."""
    source = ToyClustersSettings(points=points).source(torch.device("cpu"))
    return torch.cat([source.first_vectors(), *(batch.inputs for batch in source.held_out(held_out, held_out))])


@pytest.mark.parametrize("arch", ["topk", "gated"])
def test_weights_and_numbers_are_the_command_s(arch: str, tmp_path: Path):
    points = 2048
    words = ["eval=[vectors]", "trainer.samples=20_000", "trainer.batch_size=256", "arch.d_sae=16"]
    words += ["arch.k=2"] if arch == "topk" else []
    command = finished(
        f"arch={arch}", "source=toy_clusters", f"source.points={points}", "tracking=none", *words, outputs=tmp_path
    )
    assert command.returncode == 0, command.stdout
    (run,) = (tmp_path / "runs").iterdir()
    of_command = fsae.load(run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = fsae.train(toy_points(points), arch, held_out=4096 / (points + 4096), overrides=words, device="cpu")
    finally:
        torch.set_num_threads(threads)
    assert same(of_command, ours)
    assert ours.results == of_command.results
    theirs, own = of_command.settings, ours.settings
    assert theirs is not None
    assert own is not None
    assert (theirs.arch, theirs.loss, theirs.trainer, theirs.eval) == (own.arch, own.loss, own.trainer, own.eval)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_trains_and_knows_how_it_was_trained(arch: str):
    dictionary = fsae.train(sparse_features(), arch, **SHORT, **ARCHITECTURES[arch])
    assert dictionary.d_in == D_IN
    assert dictionary.d_sae == ARCHITECTURES[arch]["d_sae"]
    assert dictionary.results["eval/fvu"] < 1
    assert dictionary.density is not None
    assert dictionary.density.shape == (dictionary.d_sae,)
    assert dictionary.settings is not None
    assert dictionary.settings.trainer.samples == SHORT["samples"]


def test_the_last_vectors_are_held_out():
    vectors = sparse_features()
    vectors[-600:] *= 100
    dictionary = fsae.train(vectors, "topk", held_out=0.2, d_sae=32, k=4, **SHORT)
    assert dictionary.results["data/held_out_samples"] == 600
    assert dictionary.results["data/train_samples_distinct"] == 2400
    assert dictionary.results["eval/mse"] == fsae.evaluate(dictionary, vectors[-600:])["eval/mse"]
    # Training saw none of them: its scale is that of the others.
    alone = fsae.train(torch.cat([vectors[:2400], torch.ones(600, D_IN)]), "topk", held_out=0.2, d_sae=32, k=4, **SHORT)
    assert same(dictionary, alone)


def test_the_dictionary_reads_raw_vectors():
    """Vectors of another unit give codes and reconstructions in it."""
    vectors = sparse_features()
    one, other = (fsae.train(unit * vectors, "topk", d_sae=32, k=4, **SHORT) for unit in (1.0, 64.0))
    torch.testing.assert_close(other(64 * vectors) / 64, one(vectors), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.encode(64 * vectors) / 64, one.encode(vectors), rtol=1e-4, atol=1e-4)


def test_parts_are_joined_and_other_types_are_trained_on_in_float32():
    vectors = sparse_features()
    whole = fsae.train(vectors, "topk", d_sae=32, k=4, **SHORT)
    parts = fsae.train((part for part in vectors.split(700)), "topk", d_sae=32, k=4, **SHORT)
    double = fsae.train(vectors.double(), "topk", d_sae=32, k=4, **SHORT)
    assert same(whole, parts)
    assert double.dtype is torch.float32


def test_settings_objects_and_names_give_the_same():
    by_name = fsae.train(sparse_features(), "topk", k=4, d_sae=32, loss="squared_error", **SHORT)
    assert by_name.settings is not None
    trainer = by_name.settings.trainer
    assert isinstance(trainer, AdamSettings)
    by_object = fsae.train(sparse_features(), TopKSettings(k=4, d_sae=32), loss=by_name.settings.loss, trainer=trainer)
    assert by_name.settings == by_object.settings
    assert same(by_name, by_object)


def test_a_settings_object_brings_the_loss_of_its_architecture():
    dictionary = fsae.train(sparse_features(), TopKSettings(k=4, d_sae=32), **SHORT)
    assert dictionary.settings is not None
    assert set(dictionary.settings.loss) == set(composed("arch=topk").loss)


def test_the_penalty_is_chosen_by_name():
    with_one, without = (
        fsae.train(sparse_features(), "topk", penalty=penalty, k=4, d_sae=32, **SHORT).settings
        for penalty in ("fisher", "none")
    )
    assert with_one is not None
    assert without is not None
    assert (with_one.loss["penalty"].weight, without.loss["penalty"].weight) == (1000, 0)


def test_pam_can_be_chosen():
    dictionary = fsae.train(
        sparse_features(), "topk", trainer="pam", loss="squared_error", d_sae=32, k=4, decoder_norm="free",
        samples=20_000, batch_size=200,
    )  # fmt: skip
    assert dictionary.results["eval/fvu"] < 1


def test_an_export_names_the_widths_of_a_matryoshka_loss(tmp_path: Path):
    trained = fsae.train(
        sparse_features(), "batch_topk", loss="matryoshka", d_sae=32, k=4, samples=400, batch_size=200,
        folder=tmp_path / "run",
    )  # fmt: skip
    # 1/32, 3/32, 7/32 and 15/32 of 32 latents, and all.
    assert trained.provenance.matryoshka_widths == [1, 3, 7, 15, 32]
    assert fsae.load(tmp_path / "run").provenance.matryoshka_widths == [1, 3, 7, 15, 32]
    config = json.loads((tmp_path / "run" / "sae" / "cfg.json").read_text())
    assert (config["architecture"], config["metadata"]["matryoshka_widths"]) == ("jumprelu", [1, 3, 7, 15, 32])


def test_a_folder_is_a_run_s(tmp_path: Path):
    folder = tmp_path / "run"
    trained = fsae.train(sparse_features(), "topk", d_sae=32, k=4, folder=folder, **SHORT)
    without = fsae.train(sparse_features(), "topk", d_sae=32, k=4, **SHORT)
    loaded = fsae.load(folder)
    assert same(trained, without)
    assert same(trained, loaded)
    assert loaded.results == trained.results == without.results
    assert loaded.settings == trained.settings
    assert loaded.language_model is None
    assert loaded.site is None
    steps = [record.step for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == [*range(1000, 6001, 1000), 6000]
    row = fsae.collect(folder).iloc[0]
    assert (row["state"], row["arch"], row["arch.k"]) == ("finished", "topk", 4)
    assert (
        json.loads((folder / "evaluations" / "vectors.json").read_text())["numbers"]["fvu"]
        == trained.results["eval/fvu"]
    )
    assert {each.name for each in (folder / "plots").iterdir()} == {"training.png", "firing.png"}
    # Nothing else is written, such as into an outputs folder.
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_the_same_call_continues_a_stopped_training_bit_for_bit(tmp_path: Path):
    folder = tmp_path / "run"
    arguments: dict[str, Any] = {
        "d_sae": 32, "k": 4, "samples": 60_000, "batch_size": 200,
        "overrides": ["trainer.log_every=5", "trainer.resample_every=10_000"],
    }  # fmt: skip
    vectors = sparse_features()
    whole = fsae.train(vectors, "topk", **arguments)

    def stop() -> None:
        while not (folder / "metrics.jsonl").exists() or not list(read_metrics(folder / "metrics.jsonl")):
            time.sleep(0.001)
        interrupt_main()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        fsae.train(vectors, "topk", folder=folder, **arguments)
    stopper.join()
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    done = list(read_metrics(folder / "metrics.jsonl"))[-1].step
    assert 0 < done < 60_000
    with pytest.raises(ValueError, match="a run in the state 'interrupted'"):
        fsae.load(folder)
    again = fsae.train(vectors, "topk", folder=folder, **arguments)
    assert same(whole, again)
    assert again.results == whole.results
    steps = [record.step for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == [*range(1000, 60_001, 1000), 60_000]


def test_a_folder_of_another_training_is_refused_and_stays(tmp_path: Path):
    folder = tmp_path / "run"
    fsae.train(sparse_features(), "topk", d_sae=32, k=4, folder=folder, **SHORT)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"arch\.k: 4 in the checkpoint, 5 now"):
        fsae.train(sparse_features(), "topk", d_sae=32, k=5, folder=folder, **SHORT)
    with pytest.raises(ValueError, match="the vectors: "):
        fsae.train(sparse_features(seed=1), "topk", d_sae=32, k=4, folder=folder, **SHORT)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_it_trains_in_another_thread(tmp_path: Path):
    """Python allows no signal handler there."""
    found: list[fsae.Dictionary] = []
    thread = threading.Thread(
        target=lambda: found.append(
            fsae.train(sparse_features(), "topk", d_sae=32, k=4, folder=tmp_path / "run", **SHORT)
        )
    )
    thread.start()
    thread.join()
    assert found[0].results["eval/fvu"] < 1


@pytest.mark.parametrize(
    ("vectors", "arguments", "message"),
    [
        (torch.zeros(8), {}, r"expected floating-point vectors of shape \(n, d_in\), found \(8,\) of float32"),
        (torch.zeros(8, 4, dtype=torch.long), {}, r"found \(8, 4\) of int64"),
        ([[0.0]], {}, "found list of list"),
        ([], {}, "found no vectors"),
        ([torch.ones(2, 3), torch.ones(2, 4)], {}, "widths 3, 4"),
        (torch.ones(10, 4), {"held_out": 0.1}, "1 of 10 vectors; at least two"),
        (torch.ones(10, 4), {"held_out": 1.0}, "held_out is 1; it must be a share"),
        (torch.ones(500, 4), {"k": 2}, "trainer.batch_size is 1024, more than the 450 training samples"),
        (torch.ones(500, 4), {"arch": "topc"}, "arch=topc: there is no such choice; did you mean topk"),
        (torch.ones(500, 4), {"kk": 3}, r"arch\.kk: there is no such setting"),
        (torch.ones(500, 4), {"k": -3}, r"arch\.k is -3"),
        (torch.ones(500, 4), {"arch": TopKSettings(k=2), "k": 3}, "so k belongs in it"),
        (torch.ones(500, 4), {"overrides": ["population.size=2"]}, "population.size is 2, and fsae.train trains one"),
        (torch.ones(500, 4), {"overrides": ["eval=[geometry]"]}, "the evaluations are geometry, and fsae.train"),
        (torch.ones(500, 4), {"overrides": ["eval=[vectors,truth]"]}, "the evaluations are vectors, truth, and fsae"),
        (torch.ones(500, 4), {"overrides": ["eval=[]"]}, "eval names no evaluation; list one or more"),
        (torch.ones(500, 4), {"overrides": ["task=reevaluate"]}, "task is reevaluate, and fsae.train trains"),
        (torch.ones(500, 4), {"overrides": ["seed=3"]}, "overrides has seed=3, but seed is an argument of fsae.train"),
        (torch.ones(500, 4), {"overrides": ["penalty=none"]}, "penalty is an argument"),
        (torch.ones(500, 4), {"k": 2, "overrides": ["arch.k=3"]}, "overrides has arch.k=3, but k is an argument"),
        (torch.ones(500, 4), {"samples": 99, "overrides": ["trainer.samples=9"]}, "but samples is an argument"),
        (torch.ones(500, 4), {"overrides": ["source.seed=3"]}, "overrides has source.seed=3, but the vectors are the"),
        (torch.ones(500, 4), {"loss": {}, "penalty": "none"}, "put a term named penalty into it"),
        (torch.ones(500, 4), {"loss": {}}, r"loss\.reconstruction"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(vectors: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fsae.train(vectors, **{"arch": "topk", **arguments})


def test_a_loss_of_the_caller_s_own_is_trained_on():
    dictionary = fsae.train(
        sparse_features(), "standard", d_sae=32, loss={"reconstruction": SquaredError(weight=1.0)}, **SHORT
    )
    assert dictionary.settings is not None
    assert list(dictionary.settings.loss) == ["reconstruction"]
