"""Trainings that start from another run's dictionary."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fsae
from fsae.autoencoders.topk import TopKSettings
from fsae.configuration.checks import check
from fsae.configuration.composition import composed_settings
from fsae.outputs.metric_log import read_metrics
from fsae.runs.build import start_identity

SHORT = {"samples": 16_384, "batch_size": 256, "penalty": "none", "overrides": ["trainer.log_every=4"]}


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 12, generator=generator)
    on = torch.rand(4096, 24, generator=generator) < 0.1
    return 3 * (on * torch.rand(4096, 24, generator=generator)) @ directions + 5


@pytest.fixture(scope="module")
def first(vectors: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    fsae.train(vectors, "topk", k=3, d_sae=32, folder=folder, **SHORT)
    return folder


def fvus(folder: Path) -> list[float]:
    metrics = [record.metrics for record in read_metrics(folder / "metrics.jsonl")]
    return [each["train/fvu"] for each in metrics if "train/fvu" in each]


def test_training_begins_where_the_first_one_ended(vectors: torch.Tensor, first: Path, tmp_path: Path):
    fsae.train(vectors, "topk", k=3, d_sae=32, folder=tmp_path / "second", warm_start=str(first), **SHORT)
    before, after = fvus(first), fvus(tmp_path / "second")
    assert after[0] < 1.1 * before[-1] < 0.5 * before[0]


def test_other_weights_at_the_path_have_another_identity(first: Path, tmp_path: Path):
    settings = TopKSettings(warm_start=str(first))
    before = start_identity(settings)
    assert start_identity(TopKSettings(warm_start=str(first / "sae"))) == before
    assert start_identity(TopKSettings()) == {}
    (tmp_path / "cfg.json").write_text((first / "sae" / "cfg.json").read_text())
    tensors = load_file(first / "sae" / "sae_weights.safetensors")
    save_file(tensors | {"b_dec": tensors["b_dec"] + 1}, tmp_path / "sae_weights.safetensors")
    assert start_identity(TopKSettings(warm_start=str(tmp_path))) != before
    assert start_identity(TopKSettings(warm_start=str(tmp_path / "gone"))) != before


def test_start_that_does_not_fit_names_the_dictionary(vectors: torch.Tensor, first: Path):
    with pytest.raises(
        ValueError, match=r"arch\.warm_start is .*sae: it is a TopK, and this run's Gated differs in b_gate"
    ):
        fsae.train(vectors, "gated", warm_start=str(first), **SHORT)


def test_run_of_other_members_is_refused(vectors: torch.Tensor, first: Path, tmp_path: Path):
    for number in ("0", "1"):
        shutil.copytree(first / "sae", tmp_path / "sae" / number)
    assert len(set(next(iter(start_identity(TopKSettings(warm_start=str(tmp_path))).values())).split())) == 1
    with pytest.raises(ValueError, match=r"with 2 where this run trains 1; name .*sae/0"):
        fsae.train(vectors, "topk", k=3, d_sae=32, warm_start=str(tmp_path), **SHORT)


def test_members_of_a_population_need_starts_of_their_own():
    words = ["source=sparse_sources", "tracking=none", "arch=topk", "population.size=2", "arch.d_sae=64"]
    with pytest.raises(ValueError, match=r"population\.size is 2.*set arch\.kmeans_seed=null"):
        check(composed_settings([*words, "arch.decoder_init=kmeans"], {}))
    check(composed_settings([*words, "arch.decoder_init=kmeans", "arch.kmeans_seed=null"], {}))
