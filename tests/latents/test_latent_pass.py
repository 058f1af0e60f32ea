"""The pass on the tiny language model: workers, kills and resumes give the same bytes, and values can be repeated."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends, blocks_across_layers
from fsae.language_models.settings import ModelSettings, Package, Weights
from fsae.language_models.sites import OtherModelSite, Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.latents.contexts import SampleContexts, TextContexts
from fsae.latents.findings import findings
from fsae.latents.hits import HitSizes
from fsae.latents.latent_pass import Sizes, Surveyed, run_pass
from fsae.latents.survey import Survey
from fsae.latents.tables import hit_table, tally_columns
from fsae.latents.unfinished import Unfinished
from fsae.sources.layout import Sites, layout_of
from fsae.sources.tokens import TextRows
from tests.architectures import ARCHITECTURES, build, settings_of

SITE = Site(name=SiteName.resid_post, layer=1)
SITES = Sites((SITE,), (SITE,))
SIZES = Sizes(HitSizes(top=4, per_bin=2, bins=8, window=5), cofiring=8, seed=1)
SETTINGS = ModelSettings(package=Package.tiny)


@pytest.fixture(scope="module")
def model() -> TransformerLensModel:
    return open_language_model(SETTINGS)


def reopened() -> Callable[[Site], TransformerLensModel]:
    again = open_language_model(SETTINGS)
    return lambda site: again


@pytest.fixture(scope="module")
def contexts(model: TransformerLensModel) -> TextContexts:
    """Three parts of 8 rows."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.d_vocab, (24, 16), generator=generator)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0] = False
    rows = TextRows(tokens, keep, torch.zeros_like(tokens))
    return TextContexts(rows, lambda site: model, SITES, 4, None, reopened, part_positions=128)


def dictionary(contexts: TextContexts, name: str = "topk") -> Autoencoder:
    """Weights drawn for the width of the model's activations, and in evaluation mode."""
    return build(name, d_in=contexts.model.width(SITE), seed=0, dtype=torch.float32).eval()


def surveys_of(dictionaries: Sequence[Autoencoder]) -> list[Survey]:
    return [SIZES.survey(each) for each in dictionaries]


def bytes_of(surveys: Sequence[Survey]) -> list[dict[str, bytes]]:
    return [{name: each.numpy().tobytes() for name, each in survey.state().items()} for survey in surveys]


def surveyed(contexts: TextContexts, folder: Path | None = None, workers: int = 1, heartbeat=lambda: None) -> Surveyed:
    dictionaries = [dictionary(contexts), dictionary(contexts, "standard")]
    unfinished = None if folder is None else Unfinished(folder, "key")
    run = Surveyed(dictionaries, surveys_of(dictionaries), unfinished)
    run_pass(contexts, [run], heartbeat, workers)
    return run


def test_two_workers_give_the_bytes_of_one(contexts: TextContexts, tmp_path: Path):
    assert contexts.parts == 3
    one = surveyed(contexts)
    two = surveyed(contexts, tmp_path / "two", workers=2)
    assert bytes_of(one.surveys) == bytes_of(two.surveys)
    # One file is left, from which a further process continues.
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["survey.safetensors"]


def test_a_resumed_pass_gives_the_bytes_of_an_uninterrupted_one(contexts: TextContexts, tmp_path: Path):
    beats = iter(range(1000))

    def stop() -> None:
        if next(beats) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surveyed(contexts, tmp_path, heartbeat=stop)
    left = surveys_of([dictionary(contexts), dictionary(contexts, "standard")])
    Unfinished(tmp_path, "key").load(left)
    assert left[0].parts == {0, 1}
    assert bytes_of(surveyed(contexts, tmp_path).surveys) == bytes_of(surveyed(contexts).surveys)


def test_surveys_of_other_weights_and_damaged_files_are_not_read(contexts: TextContexts, tmp_path: Path):
    surveyed(contexts, tmp_path)
    (tmp_path / "worker-0.safetensors").write_bytes(b"half")
    empty = surveys_of([dictionary(contexts), dictionary(contexts, "standard")])
    Unfinished(tmp_path, "another key").load(empty)
    assert not empty[0].parts
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_worker_that_was_gathered_before_a_kill_counts_once(contexts: TextContexts, tmp_path: Path):
    run = surveyed(contexts, tmp_path)
    Unfinished(tmp_path, "key").save(run.surveys, "worker-0")
    again = surveys_of(run.autoencoders)
    Unfinished(tmp_path, "key").load(again)
    assert bytes_of(again) == bytes_of(run.surveys)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_stored_window_is_what_its_row_gives_again(contexts: TextContexts, name: str):
    """A value on a page is reproduced from the text of its row alone."""
    own = dictionary(contexts, name)
    run = Surveyed([own], surveys_of([own]))
    run_pass(contexts, [run], lambda: None)
    hits = hit_table(run.surveys[0])
    assert len(hits)
    columns = [hits[name].tolist() for name in ("latent", "context", "position", "begin", "value")]
    for *columns_of_row, found in zip(*columns, hits["values"], strict=True):
        latent, context, position, begin, value = columns_of_row
        values = np.asarray(found)
        tokens = contexts.rows.tokens[context : context + 1]
        with torch.no_grad():
            activations = contexts.model.activations(tokens, [SITE])[SITE][0].float()
            codes = own.encode(activations).codes.dense()[:, latent]
        there = codes[begin : begin + len(values)].numpy()
        counted = ~np.isnan(values)
        assert values[counted] == pytest.approx(there[counted], rel=1e-3, abs=1e-4)
        assert float(codes[position]) == pytest.approx(value, rel=1e-3, abs=1e-4)
        assert abs(value) == pytest.approx(np.nanmax(np.abs(codes[1:].numpy())), rel=1e-3, abs=1e-4)


def test_samples_are_contexts_of_their_own():
    own = build("topk", d_in=8, seed=0, dtype=torch.float32).eval()
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    run = Surveyed([own], surveys_of([own]))
    run_pass(SampleContexts(vectors, at_once=64, part_positions=128), [run], lambda: None)
    codes = own.encode(vectors).codes.dense()
    columns = tally_columns(run.surveys[0])
    assert columns["count"].tolist() == codes.count_nonzero(0).tolist()
    hits: pd.DataFrame = hit_table(run.surveys[0])
    assert set(hits["position"]) == {0}
    top = hits[(hits["group"] == "top") & (hits["rank"] == 0)]
    for latent, context in zip(top["latent"], top["context"], strict=True):
        assert codes[context, latent] == codes[:, latent].max()
    assert math.isfinite(sum(hits["value"]))


def test_an_error_of_a_worker_is_the_error_of_the_pass(contexts: TextContexts, tmp_path: Path):
    lost = partial(int, "no such model")
    broken = TextContexts(contexts.rows, contexts.model_at, SITES, 4, None, lost, part_positions=128)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no such model"):
        surveyed(broken, tmp_path, workers=2)


def test_workers_end_with_a_killed_parent():
    """Otherwise they would write to the files of the same command, given again."""
    parent = subprocess.Popen([sys.executable, "-m", "tests.latents.slow_pass"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "read\n"
    # One of the children is multiprocessing's tracker, which ends by itself.
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert len(children) >= 2
    assert not alive


def test_latents_of_layers_are_read_at_their_own_sites_and_their_effects_add_up(contexts: TextContexts):
    model, rows = contexts.model, contexts.rows
    read, written = (
        tuple(Site(name=name, layer=layer) for layer in (0, 1)) for name in (SiteName.mlp_in, SiteName.mlp_out)
    )
    limit = float(model.activations(rows.tokens, read)[read[1]].float().norm(dim=2).median())
    layers = TextContexts(rows, contexts.model_at, Sites(read, written), 4, [1e9, limit], reopened)
    found, width = layers.read(0, 4), model.width(read[0])
    activations = model.activations(rows.tokens[:4], read)
    short = rows.keep[:4] & (activations[read[1]].float().norm(dim=2) <= limit)
    assert 0 < found.left_out == int(rows.keep[:4].sum() - short.sum())
    assert torch.equal(found.vectors, torch.cat([activations[site][short] for site in read], dim=1))
    ends = Ends(
        input=layout_of(read, [width, width]), target=layout_of(written, [width, width]),
        blocks=blocks_across_layers(2),
    )  # fmt: skip
    transcoder = settings_of("standard", d_sae=6).build(ends, torch.Generator().manual_seed(0)).eval()
    run = Surveyed([transcoder], [SIZES.survey(transcoder)], None)
    run_pass(layers, [run], lambda: None)
    vectors = torch.cat([each.vectors.float() for part in range(layers.parts) for each in layers.blocks(part)])
    counts = transcoder.encode(vectors).codes.firing_counts.numpy()
    own = findings(layers, transcoder, lambda: iter(run.surveys), counts, 2, triggers=3)
    table = own.latents.to_pandas()
    row = transcoder.W_dec.detach()[:1]
    effects = model.unembedding().effects((row[:, :width] + row[:, width:]) / row.norm())
    assert table["logit_top"][0].tolist() == effects.topk(10).indices[0].tolist()
    # A latent of the second layer does not depend on the first one.
    alone = vectors.clone()
    alone[:, :width] = 0
    codes = [transcoder.encode(each).codes.dense()[:, 3:] for each in (vectors, alone)]
    assert torch.equal(*codes)
    assert own.samples == len(vectors)


def test_latents_of_two_models_read_each_in_its_own_model(contexts: TextContexts):
    """Their effects on logits are those of the first model's part."""
    model, rows, settings = contexts.model, contexts.rows, replace(SETTINGS, weights=Weights.random)
    there, other = OtherModelSite(name=SITE.name, layer=SITE.layer, model=settings), open_language_model(settings)
    sites, models = (SITE, there), {SITE: model, there: other}
    both = TextContexts(rows, models.__getitem__, Sites(sites, sites), 4, None, reopened)
    width, own = model.width(SITE), rows.keep[:4]
    parts = [each.activations(rows.tokens[:4], [SITE])[SITE][own] for each in (model, other)]
    assert torch.equal(both.read(0, 4).vectors, torch.cat(parts, dim=1))
    layout = layout_of(sites, [width, width])
    ends = Ends(input=layout, target=layout)
    crosscoder = settings_of("standard", d_sae=6).build(ends, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        crosscoder.W_dec[:, width:] *= 3
    run = Surveyed([crosscoder], [SIZES.survey(crosscoder)], None)
    run_pass(both, [run], lambda: None)
    counts = np.ones(6, dtype=np.int64)
    found = findings(both, crosscoder, lambda: iter(run.surveys), counts, 2, triggers=3, spreads=[0.5, 3.0])
    table = found.latents.to_pandas()
    # Parts begin with equal rows. The second one is 3 times as long, in 6 times the unit: (1 + 1 / 2) / 2.
    np.testing.assert_allclose(np.stack(table["relative_norms"]), [[0.75, 0.25]] * 6, rtol=1e-5)
    row = crosscoder.W_dec.detach()[:1]
    effects = model.unembedding().effects(row[:, :width] / row.norm())
    assert table["logit_top"][0].tolist() == effects.topk(10).indices[0].tolist()
