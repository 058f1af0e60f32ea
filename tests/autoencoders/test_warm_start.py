"""Dictionaries whose weights start from those of another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.layout import Ends, Layout, Scaling
from fsae.autoencoders.selection import Score, SelectionSettings
from fsae.autoencoders.settings import DecoderNorm, EncoderInit
from fsae.autoencoders.warm_start import check_start, take_over
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from tests.architectures import ARCHITECTURES, FITTED, each_architecture, each_with, fitted, samples, settings_of

TWO = Layout((("a", 5), ("b", 5)))
ENDS = {
    "autoencoder": Ends.of(5),
    "skip transcoder": Ends(input=Layout.of(5, "a"), target=Layout.of(4, "b"), skip=True),
    "crosscoder": Ends(input=TWO, target=TWO),
}
SCALES = {
    "autoencoder": Scaling((0.4,), (0.4,)),
    "skip transcoder": Scaling((0.4,), (2.5,)),
    "crosscoder": Scaling((0.4, 2.5), (0.4, 2.5)),
}

# Architectures that gradients train and whose rows may have any norm, by each score that they have.
OF_SCORES = [
    (arch, {"score": score} if score else {})
    for arch, row in ARCHITECTURES.items()
    if "decoder_norm" not in row.fixed
    for score in (list(Score) if issubclass(row.settings, SelectionSettings) else [None])
]
# Refinements of LISTA depend on the centre by more than biases.
UNREFINED = {"lista": {"refinements": 0}}


def trained(arch: str, ends: Ends, d_sae: int = 14, **changes) -> SparseAutoencoder:
    """One whose every parameter has moved, with rows as training leaves them."""
    generator = torch.Generator().manual_seed(3)
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(ends, generator)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    autoencoder.normalise_decoder()
    return autoencoder


def stored(autoencoder: Autoencoder, scaling: Scaling, folder: Path) -> Autoencoder:
    save_saelens(fold(autoencoder, scaling), folder, Provenance())
    return load_saelens(folder)


def started(
    arch: str, ends: Ends, scaling: Scaling, known: Autoencoder | None, d_sae: int = 14, **changes
) -> SparseAutoencoder:
    fresh = settings_of(arch, d_sae=d_sae, **changes).build(ends, torch.Generator().manual_seed(5))
    x, y = samples(90, ends.input.width, dtype=torch.float32), samples(90, ends.target.width, 7, torch.float32)
    scale, target_scale = (
        layout.spread(factors, torch.device("cpu"))
        for layout, factors in ((ends.input, scaling.input), (ends.target, scaling.target))
    )
    if known is not None:
        check_start(fresh, known)
    fresh.initialise(lambda: x, scale, None if ends.same else lambda: y, target_scale, seed=0, known=known)
    return fresh


def assert_equal_codes(fresh: SparseAutoencoder, before: SparseAutoencoder) -> None:
    """Compare them on inputs whose mean is not zero."""
    x = samples(30, before.d_in, seed=9, dtype=torch.float32) + 1
    a, b = before(x), fresh(x)
    torch.testing.assert_close(b.codes.dense(), a.codes.dense(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.reconstruction, a.reconstruction, rtol=1e-4, atol=1e-4)


@each_architecture
@pytest.mark.parametrize("layout", list(ENDS))
def test_start_from_an_equal_dictionary_is_that_dictionary_in_training(arch: str, layout: str, tmp_path: Path):
    ends, scaling = ENDS[layout], SCALES[layout]
    if layout != "autoencoder" and "target" in ARCHITECTURES[arch].fixed:
        return
    before = trained(arch, ends)
    again = started(arch, ends, scaling, stored(before, scaling, tmp_path / "sae"))
    assert_equal_codes(again, before)


@each_with("apply_b_dec_to_input")
@pytest.mark.parametrize("layout", ["autoencoder", "crosscoder"])
@pytest.mark.parametrize("centred", [True, False])
def test_codes_do_not_depend_on_whether_training_subtracts_b_dec(arch: str, layout: str, centred: bool, tmp_path: Path):
    ends, scaling = ENDS[layout], SCALES[layout]
    if layout != "autoencoder" and "target" in ARCHITECTURES[arch].fixed:
        return
    before = trained(arch, ends, apply_b_dec_to_input=centred, **UNREFINED.get(arch, {}))
    known = stored(before, scaling, tmp_path / "sae")
    fresh = started(arch, ends, scaling, known, apply_b_dec_to_input=not centred, **UNREFINED.get(arch, {}))
    assert_equal_codes(fresh, before)


@pytest.mark.parametrize("centred", [True, False])
def test_biases_of_other_latents_do_not_depend_on_b_dec_of_the_known_ones(centred: bool, tmp_path: Path):
    before = trained("gated", Ends.of(5), apply_b_dec_to_input=centred)
    known = stored(before, Scaling.of(0.4), tmp_path / "sae")
    fresh = started("gated", Ends.of(5), Scaling.of(0.4), known, d_sae=20, apply_b_dec_to_input=not centred)
    usual = started("gated", Ends.of(5), Scaling.of(0.4), None, d_sae=20, apply_b_dec_to_input=not centred)
    for name in ("b_gate", "b_mag"):
        assert torch.equal(fresh.get_parameter(name)[14:], usual.get_parameter(name)[14:])
        assert not torch.allclose(fresh.get_parameter(name)[:14], before.get_parameter(name))


@pytest.mark.parametrize("centred", [True, False])
def test_lista_keeps_the_setting_by_which_it_refines_codes(centred: bool, tmp_path: Path):
    before = trained("lista", Ends.of(5), apply_b_dec_to_input=centred)
    known = stored(before, Scaling.of(1.0), tmp_path / "sae")
    with pytest.raises(ValueError, match=rf"set arch\.apply_b_dec_to_input={str(centred).lower()}"):
        started("lista", Ends.of(5), Scaling.of(1.0), known, apply_b_dec_to_input=not centred)


def test_start_of_a_transcoder_from_an_autoencoder_is_refused_and_the_reverse():
    same = trained("topk", Ends.of(5))
    other = trained("topk", Ends(input=Layout.of(5, "a"), target=Layout.of(5, "b")))
    with pytest.raises(ValueError, match=r"it reconstructs what it reads, and this run's dictionary reads and writes"):
        check_start(other, same)
    with pytest.raises(ValueError, match=r"it reads and writes different sites, and this run's dictionary reconstr"):
        check_start(same, other)


@each_architecture
@pytest.mark.parametrize("width", [4, 20])
def test_first_latents_are_the_known_ones_and_others_start_as_usual(arch: str, width: int, tmp_path: Path):
    ends, scaling = ENDS["autoencoder"], SCALES["autoencoder"]
    before = trained(arch, ends)
    fresh = started(arch, ends, scaling, stored(before, scaling, tmp_path / "sae"), d_sae=width)
    usual = started(arch, ends, scaling, None, d_sae=width)
    count = min(width, 14)
    torch.testing.assert_close(fresh.W_dec[:count], before.W_dec[:count])
    torch.testing.assert_close(fresh.W_enc[:, :count], before.W_enc[:, :count])
    torch.testing.assert_close(fresh.b_dec, before.b_dec)
    assert torch.equal(fresh.W_dec[count:], usual.W_dec[count:])
    assert torch.equal(fresh.W_enc[:, count:], usual.W_enc[:, count:])


@pytest.mark.parametrize("layout", list(ENDS))
@pytest.mark.parametrize("norm", list(DecoderNorm))
@pytest.mark.parametrize("encoder_init", [EncoderInit.transpose, EncoderInit.tied])
@pytest.mark.parametrize(("arch", "changes"), OF_SCORES)
def test_export_starts_a_training_of_its_own_settings(
    arch: str, changes: dict[str, Any], encoder_init: EncoderInit, norm: DecoderNorm, layout: str, tmp_path: Path
):
    ends, scaling, changes = (
        ENDS[layout],
        SCALES[layout],
        changes | {"encoder_init": encoder_init, "decoder_norm": norm},
    )
    try:
        settings_of(arch, d_sae=14, **changes).check_ends(ends)
    except ValueError:
        return
    before = trained(arch, ends, **changes)
    if norm is DecoderNorm.free:
        with torch.no_grad():
            before.W_dec.mul_(torch.linspace(0.5, 2, 14)[:, None])
    fresh = started(arch, ends, scaling, stored(before, scaling, tmp_path / "sae"), **changes)
    x = samples(30, before.d_in, seed=9, dtype=torch.float32) + 1
    a, b = before(x), fresh(x)
    lengths = (record.codes.dense() * record.W_dec.norm(dim=1) for record in (a, b))
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.reconstruction, a.reconstruction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_linear_path_of_low_rank_starts_from_its_export(rank: int, tmp_path: Path):
    ends, scaling = replace(ENDS["skip transcoder"], skip_rank=rank), SCALES["skip transcoder"]
    before = trained("topk", ends)
    fresh = started("topk", ends, scaling, stored(before, scaling, tmp_path / "sae"))
    assert_equal_codes(fresh, before)
    assert fresh.W_skip_read.norm(dim=1).min() > 0.1


def test_linear_path_of_zeros_leaves_rows_that_learn(tmp_path: Path):
    ends = replace(ENDS["skip transcoder"], skip_rank=2)
    before = trained("topk", ends)
    with torch.no_grad():
        before.get_parameter("W_skip_write").zero_()
    fresh = started("topk", ends, Scaling.of(1.0, ends), stored(before, Scaling.of(1.0, ends), tmp_path / "sae"))
    assert_equal_codes(fresh, before)
    assert fresh.W_skip_read.norm(dim=1).min() > 0.1


def test_linear_path_of_a_higher_rank_is_refused(tmp_path: Path):
    ends, scaling = ENDS["skip transcoder"], SCALES["skip transcoder"]
    known = stored(trained("topk", ends), scaling, tmp_path / "sae")
    with pytest.raises(ValueError, match=r"linear path of rank 4, and layout\.skip_rank is 2; set layout\.skip_rank=4"):
        started("topk", replace(ends, skip_rank=2), scaling, known)


def test_batch_topk_starts_from_its_own_export_without_the_threshold(tmp_path: Path):
    known = stored(trained("batch_topk", Ends.of(5)), Scaling.of(1.0), tmp_path / "sae")
    assert type(known).__name__ == "JumpReLU"
    assert started("batch_topk", Ends.of(5), Scaling.of(1.0), known).threshold == -1


def test_batch_topk_of_free_rows_starts_with_the_winners_of_its_own_export(tmp_path: Path):
    before = trained("batch_topk", Ends.of(5), decoder_norm=DecoderNorm.free)
    with torch.no_grad():
        before.W_dec.mul_(torch.linspace(0.5, 2, 14)[:, None])
    known = stored(before, Scaling.of(0.4), tmp_path / "sae")
    fresh = started("batch_topk", Ends.of(5), Scaling.of(0.4), known, decoder_norm=DecoderNorm.free)
    assert_equal_codes(fresh, before)


def test_threshold_of_zero_can_be_trained_on(tmp_path: Path):
    before = trained("jumprelu", Ends.of(5))
    with torch.no_grad():
        before.get_parameter("log_threshold").fill_(-torch.inf)
    fresh = started("jumprelu", Ends.of(5), Scaling.of(1.0), stored(before, Scaling.of(1.0), tmp_path / "sae"))
    assert torch.isfinite(fresh.get_parameter("log_threshold")).all()


def test_start_that_does_not_fit_is_refused(tmp_path: Path):
    fresh = settings_of("topk", d_sae=14).build(Ends.of(5), torch.Generator())
    known = stored(trained("topk", Ends.of(4)), Scaling.of(1.0), tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"reads vectors of width 4, and this run's have width 5"):
        check_start(fresh, known)
    for arch, differs in (("gated", "b_enc"), ("matching_pursuit", "b_enc"), ("mlp_encoder", "W_hidden")):
        with pytest.raises(ValueError, match=rf"this run's TopK differs in .*{differs}.*of the same arch"):
            check_start(fresh, stored(trained(arch, Ends.of(5)), Scaling.of(1.0), tmp_path / arch))
    with pytest.raises(ValueError, match=r"it is a LocalPCA"):
        check_start(fresh, fitted(next(iter(FITTED))))


def test_rows_of_other_norms_are_refused_if_rows_are_unit_vectors(tmp_path: Path):
    # If latents compete, the export leaves norms as they are.
    before = trained("topk", Ends.of(5), decoder_norm=DecoderNorm.free)
    with torch.no_grad():
        before.W_dec.mul_(3)
    known = stored(before, Scaling.of(1.0), tmp_path / "sae")
    with pytest.raises(ValueError, match=r"norms from 3 to 3.*decoder_norm=free"):
        started("topk", Ends.of(5), Scaling.of(1.0), known)


def test_rows_of_other_norms_are_refused_if_their_weights_would_choose_other_latents(tmp_path: Path):
    before = trained("batch_topk", Ends.of(5), decoder_norm=DecoderNorm.free)
    with torch.no_grad():
        before.W_dec.mul_(torch.linspace(1, 3, 14)[:, None])
    for score, change in ((Score.plain, "free"), (Score.weighted, r"free arch\.score=plain")):
        known = stored(before, Scaling.of(1.0), tmp_path / "sae")
        with pytest.raises(ValueError, match=rf"norms from 1 to 3.*set arch\.decoder_norm={change}$"):
            started("batch_topk", Ends.of(5), Scaling.of(1.0), known, score=score)


def test_encoder_of_its_own_is_refused_if_the_encoder_is_tied(tmp_path: Path):
    for arch in ("standard", "topk"):
        known = stored(trained(arch, Ends.of(5)), Scaling.of(1.0), tmp_path / arch)
        with pytest.raises(ValueError, match=r"not its decoder's transpose.*set arch\.encoder_init=transpose"):
            started(arch, Ends.of(5), Scaling.of(1.0), known, encoder_init=EncoderInit.tied)
    pursuit = settings_of("matching_pursuit", d_sae=14).build(5, torch.Generator())
    known = stored(trained("topk", Ends.of(5), encoder_init=EncoderInit.tied), Scaling.of(1.0), tmp_path / "tied")
    with pytest.raises(ValueError, match=r"it is a TopK, and this run's MatchingPursuit differs in b_enc"):
        check_start(pursuit, known)


def test_columns_of_other_norms_are_refused_if_columns_are_unit_vectors(tmp_path: Path):
    before = trained("group_topk", Ends.of(5))
    with torch.no_grad():
        before.W_enc.mul_(3)
    known = stored(before, Scaling.of(1.0), tmp_path / "sae")
    with pytest.raises(ValueError, match=r"encoder columns with norms from 3 to 3.*decoder_norm=free"):
        started("group_topk", Ends.of(5), Scaling.of(1.0), known)


@each_with("encoder_init")
def test_known_latents_are_aligned_from_the_start(arch: str, tmp_path: Path):
    known = stored(trained(arch, Ends.of(5)), Scaling.of(1.0), tmp_path / "sae")
    fresh = settings_of(arch, d_sae=14, align_encoder=True).build(5, torch.Generator())
    fresh.initialise(lambda: samples(90, dtype=torch.float32), 1.0, known=known)
    torch.testing.assert_close((fresh.W_enc.T * fresh.W_dec).sum(1), torch.ones(14))


@each_architecture
def test_latents_without_a_direction_start_as_usual_if_rows_are_unit_vectors(arch: str, tmp_path: Path):
    ends, scaling = ENDS["autoencoder"], SCALES["autoencoder"]
    before = trained(arch, ends)
    with torch.no_grad():
        before.W_dec[[2, 7]] = 0.0
    fresh = started(arch, ends, scaling, stored(before, scaling, tmp_path / "sae"))
    usual = started(arch, ends, scaling, None)
    torch.testing.assert_close(fresh.W_dec.norm(dim=1), torch.ones(14))
    assert torch.equal(fresh.W_dec[[2, 7]], usual.W_dec[[2, 7]])
    assert torch.equal(fresh.W_enc[:, [2, 7]], usual.W_enc[:, [2, 7]])
    others = [latent for latent in range(14) if latent not in (2, 7)]
    torch.testing.assert_close(fresh.W_dec[others], before.W_dec[others])


def test_latents_without_a_direction_are_kept_if_rows_are_free(tmp_path: Path):
    before = trained("topk", Ends.of(5), decoder_norm=DecoderNorm.free)
    with torch.no_grad():
        before.W_dec[2] = 0.0
    known = stored(before, Scaling.of(1.0), tmp_path / "sae")
    fresh = settings_of("topk", d_sae=14, decoder_norm=DecoderNorm.free).build(Ends.of(5), torch.Generator())
    assert isinstance(known, SparseAutoencoder)
    take_over(fresh, known)
    assert not fresh.W_dec[2].any()
    torch.testing.assert_close(fresh.W_enc, before.W_enc)
