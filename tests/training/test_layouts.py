"""Trainings between sites: resumed bit for bit, with a factor for each part."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.autoencoders.layout import Ends, Layout, Scaling
from fsae.autoencoders.selection import CompetitionScope, Score
from fsae.autoencoders.settings import DecoderNorm
from fsae.language_models.sites import Site, SiteName
from fsae.losses.objective import Objective
from fsae.sources.layout import Latents, LayoutSettings, Sites
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interrupted
from fsae.training.measures import batch_measures
from fsae.training.scaling import Scale, scaling_of
from tests.architectures import samples, settings_of
from tests.sources.test_layout import BETWEEN, BOTH
from tests.streams import activation_source
from tests.training.runs import D_SAE, LoneRun, adam, differences, saved, terms, training_run

ACROSS = Sites(BOTH.input, (Site(name=SiteName.mlp_out, layer=3), Site(name=SiteName.resid_post, layer=9)))
LAYOUTS = {
    "skip transcoder": (BETWEEN, LayoutSettings(skip=True, skip_rank=2, target=BETWEEN.target[0].name)),
    "crosscoder": (BOTH, LayoutSettings(layers=[3, 9])),
    "partitioned crosscoder": (BOTH, LayoutSettings(layers=[3, 9], exclusive=0.1)),
    "cross-layer transcoder": (
        ACROSS,
        LayoutSettings(layers=[3, 9], target=SiteName.mlp_out, latents=Latents.cross_layer, skip=True),
    ),
}
each_layout = pytest.mark.parametrize(("sites", "settings"), list(LAYOUTS.values()), ids=list(LAYOUTS))


def run(
    arch: str, folder: Path, sites: Sites, settings: LayoutSettings, stop_at: int | None = None, **changes: Any
) -> LoneRun:
    source = activation_source(read=sites)
    ends, scaling = settings.ends(source.input_layout, source.target_layout), scaling_of(source, Scale.sqrt_d)
    autoencoder = settings_of(arch, d_sae=D_SAE, **changes).build(ends, torch.Generator().manual_seed(1))
    scale, target_scale = (
        layout.spread(factors, torch.device("cpu"))
        for layout, factors in ((ends.input, scaling.input), (ends.target, scaling.target))
    )
    autoencoder.initialise(source.first_vectors, scale, None if ends.same else source.first_targets, target_scale)
    learner = GradientLearner(autoencoder, Objective(terms(arch)), adam(), target_scale, seed=3)
    made = training_run(arch, folder, stop_at=stop_at, source=source, trained=learner)
    made.scaling = scaling
    return made


@each_layout
@pytest.mark.parametrize("arch", ["topk", "jumprelu", "gated"])
def test_stopped_and_resumed_training_is_the_uninterrupted_one(
    arch: str, sites: Sites, settings: LayoutSettings, tmp_path: Path
):
    run(arch, tmp_path / "whole", sites, settings).train()
    folder = tmp_path / "stopped"
    for step in (3, 9):
        with pytest.raises(Interrupted):
            run(arch, folder, sites, settings, stop_at=step).train()
    run(arch, folder, sites, settings).train()
    assert not differences(saved(folder), saved(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("crosscoder", {"score": Score.weighted, "decoder_norm": DecoderNorm.free}),
        ("cross-layer transcoder", {"scope": CompetitionScope.block, "k": 4}),
    ],
)
def test_selections_resume_with_the_same_thresholds(layout: str, changes: dict[str, Any], tmp_path: Path):
    sites, settings = LAYOUTS[layout]
    run("batch_topk", tmp_path / "whole", sites, settings, **changes).train()
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run("batch_topk", folder, sites, settings, stop_at=5, **changes).train()
    run("batch_topk", folder, sites, settings, **changes).train()
    assert not differences(saved(folder), saved(tmp_path / "whole"))


@each_layout
def test_training_lowers_the_error(sites: Sites, settings: LayoutSettings, tmp_path: Path):
    training = run("topk", tmp_path / "run", sites, settings)
    first: list[float] = []
    learner = training.members[0]
    finish = learner.finish

    def keep(record, step: int) -> None:
        first.append(record.error.square().sum().item())
        finish(record, step)

    learner.finish = keep
    training.train()
    # Errors of single batches: a resampling raises the error of the next ones.
    assert statistics.median(first[-5:]) < 0.7 * first[0]


def test_each_part_has_a_factor_of_its_own():
    with activation_source(read=BOTH) as source:
        scaling = scaling_of(source, Scale.sqrt_d)
    assert scaling.input == scaling.target
    assert scaling.input[0] == pytest.approx(2 * scaling.input[1])
    with activation_source(read=BETWEEN) as source:
        between = scaling_of(source, Scale.sqrt_d)
    assert (between.input[0], between.target[0]) == scaling.input


def test_measures_are_in_raw_units_of_each_part():
    two = Layout((("a", 1), ("b", 1)))
    autoencoder = settings_of("standard", d_sae=2).build(Ends(input=two, target=two), torch.Generator().manual_seed(0))
    autoencoder = autoencoder.double()
    factors = two.spread((2.0, 0.5), torch.device("cpu"), torch.float64)
    record = autoencoder(samples(9, 2))
    found = batch_measures(record, factors)
    raw = record.error / torch.tensor([2.0, 0.5])
    assert found["mse"].item() == pytest.approx(raw.square().sum(1).mean().item())
    rows = (record.W_dec / torch.tensor([2.0, 0.5])).norm(dim=1)
    assert found["l1"].item() == pytest.approx((record.codes.dense().abs() @ rows).mean().item())
    assert batch_measures(record, 2.0)["mse"].item() == pytest.approx(record.error.square().sum(1).mean().item() / 4)
    assert str(Scaling((2.0,), (0.5,))) == "2 (targets by 0.5)"
