"""A warm start: the weights of a trained dictionary as the first ones of another, which may be wider or narrower."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fsae.autoencoders.layout import PartNorm
from fsae.autoencoders.settings import DecoderNorm, SparseAutoencoderSettings

if TYPE_CHECKING:
    from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder

# Unit rows may have been stored in bfloat16.
_ROUNDING = 1e-2


def check_start(fresh: "Autoencoder", known: "Autoencoder") -> None:
    """Raise ValueError if the weights of a fresh autoencoder cannot start from a trained one.

    Widths of latents may differ. What one of both lacks is allowed if it has no part in the codes of a latent: a linear
    path or a hidden layer then starts as it was drawn, and thresholds are left out.
    """
    known.check_decodes_alone()
    for verb, own, other in (
        ("reads", fresh.ends.input, known.ends.input),
        ("writes", fresh.ends.target, known.ends.target),
    ):
        if own.widths != other.widths:
            raise ValueError(
                f"it {verb} vectors of width {_shown(other.widths)}, and this run's have width {_shown(own.widths)}; "
                "choose a dictionary for vectors of the same layout"
            )
    own_ends, other_ends = fresh.ends, known.ends
    if own_ends.same != other_ends.same:
        own, other = (
            "reconstructs what it reads" if ends.same else "reads and writes different sites"
            for ends in (own_ends, other_ends)
        )
        raise ValueError(f"it {other}, and this run's dictionary {own}; choose a dictionary of the same layout")
    if (own_ends.unread(fresh.d_sae), own_ends.unwritten(fresh.d_sae)) != (
        other_ends.unread(known.d_sae),
        other_ends.unwritten(known.d_sae),
    ):
        raise ValueError(
            "its latents and those of this run read or write different parts; choose a dictionary of the same layout "
            "and arch.d_sae"
        )
    ours, theirs = dict(fresh.named_parameters()), dict(known.named_parameters())
    lacking = [name for name in ours if fresh.latent_axis(name) is not None and name not in theirs]
    # Thresholds are found again. `take_over` compares the encoder of a tied start with the decoder, in the unit of
    # training, and factorises a path of low rank, of which an export has the product.
    unused = {"log_threshold", "W_enc"} | ({"W_skip"} if fresh.ends.skip_rank is not None else set())
    superfluous = [name for name in theirs if name not in ours and name not in unused]
    resized = [
        name
        for name in ours.keys() & theirs.keys()
        if fresh.latent_axis(name) is None and ours[name].shape != theirs[name].shape
    ]
    sparse = issubclass(known.settings_type, SparseAutoencoderSettings)
    if not sparse or lacking or superfluous or resized:
        different = ", ".join(dict.fromkeys([*lacking, *superfluous, *resized])) or "its encoder"
        raise ValueError(
            f"it is a {type(known).__name__}, and this run's {type(fresh).__name__} differs in {different}; choose a "
            "dictionary of the same arch, encoder and linear path"
        )


@torch.no_grad()
def take_over(fresh: "SparseAutoencoder", known: "SparseAutoencoder") -> None:
    """Replace the first latents by those of a dictionary that passed `check_start`, and the weights that they share.

    Every input keeps the codes of these latents: if one of both subtracts b_dec from the input and the other does not,
    biases compensate for it. Rows get the norms that training keeps, and codes the inverse factors, if the same latents
    are on then. Under `decoder_norm: unit` a latent whose row is zero is left out: it has no direction, and a fresh one
    stays.

    Args:
        fresh: its weights change.
        known: in the unit of training; its weights change.

    Raises:
        ValueError: its other rows, or its encoder's columns, have norms that `decoder_norm: unit` would change; its
            encoder is not its decoder's transpose, and the fresh one is tied; biases cannot compensate for b_dec; or
            its linear path has a higher rank.
    """
    if (fresh.centre is None) != (known.centre is None):
        known.move_inputs(known.b_dec if known.centre is None else -known.b_dec)
    latents = torch.arange(min(fresh.d_sae, known.d_sae), device=known.W_dec.device)
    settings = fresh.settings
    if settings.decoder_norm is DecoderNorm.unit:
        latents = latents[known.W_dec.any(dim=1)[latents]]
    _choose_norms(fresh, known, latents)
    norms = known.W_dec.norm(dim=1)[latents]
    if settings.decoder_norm is DecoderNorm.unit and ((norms - 1).abs() > _ROUNDING).any():
        raise ValueError(
            f"arch.warm_start has decoder rows with norms from {norms.min():.3g} to {norms.max():.3g}, which "
            "arch.decoder_norm=unit would change, and its codes with them; set arch.decoder_norm=free"
            + (" arch.score=plain" if settings.weighs_scores else "")
        )
    if settings.tied and ((known.W_enc.T - known.W_dec).norm(dim=1)[latents] > _ROUNDING * norms).any():
        raise ValueError(
            "arch.warm_start has an encoder that is not its decoder's transpose, as arch.encoder_init=tied requires; "
            "set arch.encoder_init=transpose"
        )
    theirs = dict(known.named_parameters())
    if fresh.has_unit_columns:
        columns = theirs["W_enc"].norm(dim=0)[latents]
        if ((columns - 1).abs() > _ROUNDING).any():
            raise ValueError(
                f"arch.warm_start has encoder columns with norms from {columns.min():.3g} to {columns.max():.3g}, "
                f"which arch.decoder_norm=unit would change in arch {fresh.settings.name}, and its codes with them; "
                "set arch.decoder_norm=free"
            )
    for name, parameter in fresh.named_parameters():
        if fresh.latent_axis(name) is None and name in theirs:
            parameter.copy_(theirs[name])
    if fresh.ends.skip_rank is not None and "W_skip" in theirs:
        _factorise(theirs["W_skip"], fresh.W_skip_read, fresh.W_skip_write)
    fresh.copy_latents(known, latents)
    fresh.mask_weights()


def _choose_norms(fresh: "SparseAutoencoder", known: "SparseAutoencoder", latents: Tensor) -> None:
    """Give rows the norms that training keeps, and codes the inverse factors, if the same latents are on then."""
    settings, norms = fresh.settings, known.W_dec.norm(dim=1)
    if settings.decoder_norm is DecoderNorm.unit:
        wanted = torch.ones_like(norms)
    elif settings.tied:
        wanted = (norms * known.W_enc.norm(dim=0)).sqrt()
    else:
        return
    if fresh.latents_compete:
        # A weighted score does not depend on the code's unit. If the weights are 1, as in an export, the scores are the
        # codes by which the known latents compete.
        parts = fresh.ends.target.split(known.W_dec) if fresh.ends.part_norm is PartNorm.sum else [known.W_dec]
        weights = torch.stack([part.norm(dim=1) for part in parts]).sum(0)[latents]
        if not settings.weighs_scores or ((weights - 1).abs() > _ROUNDING).any():
            return
    factors = torch.where((norms > 0) & (wanted > 0), norms / wanted, 1.0)
    known.W_enc.mul_(factors)
    known.W_dec.div_(factors[:, None])
    known.multiply_pre_activations(factors)


def _factorise(path: Tensor, read: Tensor, write: Tensor) -> None:
    """Set write @ read to a linear path, (d_out, d_in), whose rank the width of `read` allows."""
    rank = len(read)
    left, sizes, right = torch.linalg.svd(path.float(), full_matrices=False)
    # The norm of the singular values from each one on.
    rest = sizes.square().flip(0).cumsum(0).flip(0).sqrt()
    if (needed := int((rest > _ROUNDING * rest[0]).sum())) > rank:
        raise ValueError(
            f"arch.warm_start has a linear path of rank {needed}, and layout.skip_rank is {rank}; set "
            f"layout.skip_rank={needed} or more, or layout.skip_rank=null"
        )
    # Rows of unit norm are about as long as fresh ones, and stay in use if the path has a lower rank than they allow.
    read[: len(sizes)] = right[:rank]
    write[:, : len(sizes)] = (left * sizes)[:, :rank]


def _shown(widths: list[int]) -> str:
    return " + ".join(map(str, widths))
