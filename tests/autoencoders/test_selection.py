"""Selection: by weighted scores, within blocks, and what folding and files make of them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Ends, Layout, PartNorm, Scaling, blocks_per_layer, exclusive_blocks
from fsae.autoencoders.selection import Competing, CompetitionScope, Score, SelectionSettings
from fsae.autoencoders.settings import DecoderInit, DecoderNorm
from fsae.autoencoders.topk import TopKSettings
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from fsae.losses.auxiliary import AuxK
from fsae.losses.term import Moment
from fsae.training.pam_settings import PamSettings
from fsae.training.population import PopulationSettings
from tests.architectures import ARCHITECTURES, samples, settings_of
from tests.autoencoders.test_layout import CROSSCODER, LAYERS, moved

TWO = Layout((("base", 1), ("chat", 1)))
each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
each_weighted = pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk", "lista", "mlp_encoder"])
WEIGHTED = {"score": Score.weighted, "decoder_norm": DecoderNorm.free}


def by_hand(arch: str, norm: PartNorm, score: Score) -> SparseAutoencoder:
    """Two parts of one dimension and two latents: codes (x_base, 2 x_chat), norms of rows (3, 4) and (0, 1)."""
    ends = Ends(input=TWO, target=TWO, part_norm=norm)
    settings = settings_of(arch, d_sae=2, k=1, score=score, decoder_norm=DecoderNorm.free)
    crosscoder = settings.build(ends, torch.Generator()).double()
    with torch.no_grad():
        crosscoder.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        crosscoder.W_dec.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    return crosscoder


@each_path
@pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk"])
def test_a_latent_wins_by_its_code_times_the_norms_of_its_parts(arch: str, sparse: bool):
    # Codes (1, 2) and scores (1 x 7, 2 x 1); by the joint norm (1 x 5, 2 x 1).
    x = torch.ones(1, 2, dtype=torch.float64)
    for norm in PartNorm:
        record = by_hand(arch, norm, Score.weighted)(x, sparse)
        assert record.codes.dense().tolist() == [[1, 0]]
        assert record.reconstruction.tolist() == [[3, 4]]
    assert by_hand(arch, PartNorm.sum, Score.plain)(x, sparse).codes.dense().tolist() == [[0, 2]]
    # Codes (0.2, 2): 1.4 by the sum against 2; (0.35, 2): 2.45 by the sum, and 1.75 by the joint norm.
    for base, norm, wanted in (
        (0.2, PartNorm.sum, [0, 2]),
        (0.35, PartNorm.sum, [0.35, 0]),
        (0.35, PartNorm.joint, [0, 2]),
    ):
        x = torch.tensor([[base, 1.0]], dtype=torch.float64)
        assert by_hand(arch, norm, Score.weighted)(x, sparse).codes.dense().tolist() == [wanted]


def test_the_threshold_is_a_score_and_becomes_one_of_codes_by_folding():
    # The smallest score of the first batch is 7. Folded with the scale 2 the code of latent 0 is 7 / 2 times as large,
    # and its row 3 / 7, 4 / 7.
    crosscoder = by_hand("batch_topk", PartNorm.sum, Score.weighted)
    crosscoder(torch.ones(1, 2, dtype=torch.float64))
    assert isinstance(crosscoder, BatchTopK)
    assert crosscoder.threshold.item() == 7
    folded = fold(crosscoder, 2.0)
    assert isinstance(folded, BatchTopK)
    assert folded.threshold.item() == 3.5
    torch.testing.assert_close(folded.W_dec[0], torch.tensor([3 / 7, 4 / 7], dtype=torch.float64))
    # Raw 0.51 is 1.02 in training, so the code is 1.02 x 7 / 2; 0.49 is below the threshold.
    x = torch.tensor([[0.51, 0.0], [0.49, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(folded(x).codes.dense()[:, 0], torch.tensor([3.57, 0.0], dtype=torch.float64))


def weighted(arch: str, ends: Ends = CROSSCODER, **changes) -> SparseAutoencoder:
    """A dictionary whose decoder rows differ in their norms, so that both scores select other latents."""
    autoencoder = moved(arch, ends, **WEIGHTED, **changes)
    with torch.no_grad():
        autoencoder.W_dec.mul_(torch.linspace(0.3, 3.0, 14, dtype=torch.float64)[:, None])
    if isinstance(autoencoder, BatchTopK):
        # The average of a few batches.
        for seed in range(5):
            autoencoder(samples(40, ends.input.width, seed=50 + seed))
    return autoencoder


def with_score(autoencoder: SparseAutoencoder, score: Score) -> SparseAutoencoder:
    autoencoder.settings = replace(cast(SelectionSettings, autoencoder.settings), score=score)
    return autoencoder


@each_weighted
@pytest.mark.parametrize("training", [True, False])
def test_weighted_codes_are_the_same_by_dense_and_sparse_products(arch: str, training: bool):
    autoencoder, x = weighted(arch).train(training), samples(30)
    dense = autoencoder(x).codes.dense()
    for _ in range(2):
        # The second search begins at the smallest score of the first.
        torch.testing.assert_close(autoencoder(x, sparse=True).codes.dense(), dense, rtol=1e-12, atol=0)
    assert (dense != 0).any()
    assert not torch.equal(with_score(autoencoder, Score.plain)(x).codes.dense(), dense)


@each_weighted
def test_a_batch_lets_the_largest_scores_through(arch: str):
    autoencoder, x = weighted(arch).train(), samples(30)
    record = autoencoder(x)
    scores = record.pre_activations.dense() * autoencoder.part_norms().sum(1)
    on = record.codes.dense() != 0
    if arch in ("topk", "abs_topk"):
        scores = scores.abs() if arch == "abs_topk" else scores
        wanted = scores >= scores.sort(dim=1, descending=True).values[:, 2:3]
        assert torch.equal(on, wanted & (scores > 0))
    elif arch == "batch_topk":
        assert torch.equal(on, scores >= scores.flatten().sort(descending=True).values[3 * 30 - 1])
    else:
        # The pre-activations are those of the refined input, from which they are made again here.
        refined = autoencoder.encode(x).pre_activations
        assert refined is not None
        scores = refined.dense() * autoencoder.part_norms().sum(1)
        assert torch.equal(on, scores >= scores.flatten().sort(descending=True).values[3 * 30 - 1])


@each_weighted
@pytest.mark.parametrize("norm", list(PartNorm), ids=lambda norm: norm.name)
def test_folding_keeps_what_weighted_scores_select(arch: str, norm: PartNorm, tmp_path: Path):
    """The parts' norms change their proportions with the parts' scales."""
    autoencoder = weighted(arch, replace(CROSSCODER, part_norm=norm)).eval()
    scaling = Scaling((0.5, 3.0), (0.5, 3.0))
    scale = LAYERS.spread(scaling.input, torch.device("cpu"), torch.float64)
    x, folded = samples(60), fold(autoencoder, scaling)
    before, after = autoencoder(x * scale), folded(x, sparse=True)
    torch.testing.assert_close(after.reconstruction, before.reconstruction / scale, rtol=1e-12, atol=1e-13)
    on = before.codes.dense() != 0
    assert torch.equal(after.codes.dense() != 0, on)
    assert on.any()
    # By plain scores others would be on.
    assert cast(SelectionSettings, folded.settings).score is Score.plain
    assert not torch.equal(with_score(autoencoder, Score.plain)(x * scale).codes.dense() != 0, on)
    save_saelens(folded.float(), tmp_path / "sae", Provenance(hook_names=["blocks.0.hook_resid_mid"] * 2))
    loaded = load_saelens(tmp_path / "sae")(x.float())
    assert torch.equal(loaded.codes.dense() != 0, on)
    torch.testing.assert_close(loaded.reconstruction, after.reconstruction.float(), rtol=1e-4, atol=1e-5)


def test_a_latent_without_a_row_is_never_on():
    autoencoder = weighted("batch_topk")
    with torch.no_grad():
        autoencoder.W_dec[3] = 0.0
        autoencoder.get_parameter("b_enc")[3] = 100.0
    x = samples(20)
    for dictionary in (autoencoder, autoencoder.eval(), fold(autoencoder, 1.0)):
        for sparse in (False, True):
            codes = dictionary(x, sparse).codes.dense()
            assert not codes[:, 3].any()
            assert codes.any()


def test_auxk_takes_dead_latents_by_their_scores():
    # Both latents are dead, with pre-activations (1, 2) and scores (7, 2): latent 0 explains the residual (1, 1) with
    # (3, 4), an error of 4 + 9; latent 1 would leave 1 + 1.
    moment = Moment(torch.tensor([0, 1]))
    x = torch.ones(1, 2, dtype=torch.float64)
    for arch in ("topk", "batch_topk"):
        for score, wanted in ((Score.weighted, 13.0), (Score.plain, 2.0)):
            crosscoder = by_hand(arch, PartNorm.sum, score)
            record = crosscoder(x)
            record = replace(record, reconstruction=torch.zeros_like(x))
            assert AuxK(weight=1.0, k=1).measure(record, moment).value.item() == wanted


def test_rows_of_zeros_have_no_score():
    with pytest.raises(ValueError, match=r"no latent would win a place; set arch\.score=plain"):
        settings_of("topk", decoder_init=DecoderInit.zeros, **WEIGHTED)


def test_decoders_on_which_the_selection_depends_are_not_solved_for():
    assert not settings_of("topk").reads_decoder
    arch = settings_of("topk", **WEIGHTED)
    with pytest.raises(ValueError, match=r"codes of arch TopK depend on the decoder.*arch\.score=plain"):
        PamSettings().check(arch, ARCHITECTURES["topk"].loss, PopulationSettings())


IN, OUT = (Layout(tuple((f"{name}.{layer}", width) for layer in range(3))) for name, width in (("in", 3), ("out", 2)))
PER_LAYER = Ends(input=IN, target=OUT, part_norm=PartNorm.joint, blocks=blocks_per_layer(3))
BLOCK = {"scope": CompetitionScope.block}


def layers_together_and_alone(arch: str, **changes) -> tuple[SparseAutoencoder, list[SparseAutoencoder]]:
    """A dictionary of three layers with 2 places each, and transcoders of these layers with the same weights."""
    ends = Ends(input=Layout.of(3, "in"), target=Layout.of(2, "out"))
    together = loud_first(arch, PER_LAYER, k=6, **BLOCK, **changes)
    alone = []
    for (latents, read), (_, written) in zip(PER_LAYER.read(15), PER_LAYER.written(15), strict=True):
        own = settings_of(arch, d_sae=5, k=2, **changes).build(ends, torch.Generator()).double()
        with torch.no_grad():
            own.W_enc.copy_(together.W_enc[read, latents])
            own.W_dec.copy_(together.W_dec[latents, written])
            own.b_dec.copy_(together.b_dec[written])
            own.get_parameter("b_enc").copy_(together.get_parameter("b_enc")[latents])
        alone.append(own)
    return together, alone


def loud_first(arch: str, ends: Ends, **changes) -> SparseAutoencoder:
    """Like `moved`, with 15 latents, of which those of the first layer would take the places of the others."""
    autoencoder = moved(arch, ends, d_sae=15, **changes)
    with torch.no_grad():
        autoencoder.get_parameter("b_enc")[:5] += 3.0
    return autoencoder


@each_path
@pytest.mark.parametrize("changes", [{}, WEIGHTED], ids=["value", "weighted"])
@pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk"])
def test_layers_with_places_of_their_own_are_separate_transcoders(arch: str, changes: dict, sparse: bool):
    together, alone = layers_together_and_alone(arch, **changes)
    for training in (True, False):
        for each in (together, *alone):
            each.train(training)
        for seed in range(4):
            x = samples(16, 9, seed=seed)
            record = together(x, sparse)
            apart = [each(own, sparse) for each, own in zip(alone, IN.split(x), strict=True)]
            codes = torch.cat([each.codes.dense() for each in apart], dim=1)
            torch.testing.assert_close(record.codes.dense(), codes, rtol=1e-12, atol=0)
            torch.testing.assert_close(record.reconstruction, torch.cat([each.reconstruction for each in apart], 1))
    if isinstance(together, BatchTopK):
        assert together.threshold.tolist() == [cast(BatchTopK, each).threshold.item() for each in alone]
    # If all layers compete, the loud one takes more than 2 places of each sample.
    competing = loud_first(arch, PER_LAYER, k=6, **changes)
    assert (competing(samples(16, 9), sparse).codes.dense()[:, :5] != 0).sum() > 2 * 16


@pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk"])
def test_places_of_blocks_survive_folding_and_files(arch: str, tmp_path: Path):
    together, _ = layers_together_and_alone(arch)
    for seed in range(3):
        together(samples(16, 9, seed=seed))
    together.eval()
    inputs, targets = (0.5, 3.0, 1.0), (0.25, 2.0, 1.0)
    scale = IN.spread(inputs, torch.device("cpu"), torch.float64)
    target_scale = OUT.spread(targets, torch.device("cpu"), torch.float64)
    x, folded = samples(30, 9), fold(together, Scaling(inputs, targets))
    before, after = together(x * scale), folded(x, sparse=True)
    assert torch.equal(after.codes.dense() != 0, before.codes.dense() != 0)
    torch.testing.assert_close(after.reconstruction, before.reconstruction / target_scale)
    names = Provenance(hook_names=IN.names, hook_names_out=OUT.names)
    save_saelens(folded.float(), tmp_path / "sae", names)
    loaded = load_saelens(tmp_path / "sae")
    torch.testing.assert_close(loaded(x.float()).codes.dense(), after.codes.dense().float(), rtol=1e-4, atol=1e-5)


def test_partitions_have_the_share_of_places_that_they_have_of_latents():
    # 3 of 15 latents are of each of two parts: a fifth of 10 places.
    layout = Layout((("a", 3), ("b", 3)))
    ends = Ends(input=layout, target=layout, blocks=exclusive_blocks(2, 0.2))
    dictionary = loud_first("topk", ends, k=10, **BLOCK)
    on = (dictionary(samples(9, 6)).codes.dense() != 0).split([3, 3, 9], dim=1)
    assert [int(each.sum(1).max()) for each in on] == [2, 2, 6]


def test_places_that_blocks_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"arch\.k is 4.*3 blocks of latents, as 1\.333, .*multiple of 3"):
        settings_of("topk", d_sae=15, k=4, **BLOCK).check_ends(PER_LAYER)
    with pytest.raises(ValueError, match=r"arch\.k is 2"):
        settings_of("batch_topk", d_sae=15, k=2, **BLOCK).check_ends(PER_LAYER)
    settings_of("topk", d_sae=15, k=6, **BLOCK).check_ends(PER_LAYER)
    # One block has all places.
    settings_of("topk", d_sae=15, k=4, **BLOCK).check_ends(CROSSCODER)


@pytest.mark.parametrize("scope", ["layer", ["block"], {}])
def test_a_damaged_scope_of_a_file_is_refused(scope: object):
    with pytest.raises(ValueError, match=f"scope is {re.escape(repr(scope))}; it must be all or block"):
        TopKSettings.from_saelens("topk", {"k": 2, "scope": scope}, 14)


def test_a_schedule_of_k_leaves_each_block_a_place():
    dictionary = loud_first("topk", PER_LAYER, k=6, k_start=1, k_until=1.0, **BLOCK).train()
    found = []
    for progress in (0.0, 0.5, 1.0):
        dictionary.progress = progress
        found.append([places for _, places in cast(Competing, dictionary).competition.groups])
    # k is 1, 4 and 6: a third of it, rounded, but at least 1.
    assert found == [[1, 1, 1], [1, 1, 1], [2, 2, 2]]
