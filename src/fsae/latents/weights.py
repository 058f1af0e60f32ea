"""Facts about latents that the weights alone give: neighbours, and effects on a language model's logits."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.layout import Layout
from fsae.language_models.unembedding import Unembedding

NEIGHBOURS = 10
LOGITS = 10
# Top logits that the input score reads.
INPUT_LOGITS = 20
# Entries of a block of cosines or logits. In float32, with as many for each intermediate result, some 60 MB.
ENTRIES = 2**22


@torch.no_grad()
def weight_columns(W_enc: Float[Tensor, "d_in d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> dict[str, Any]:
    """Return the columns of the latent store that follow from the dictionary's weights.

    Decoder and encoder neighbours with their cosines, the decoder's norms, and the cosines of encoder and decoder, if
    both have the same width. A latent whose row or column is zero has no direction, and nulls.
    """
    columns: dict[str, Any] = {}
    for name, rows in (("decoder", W_dec), ("encoder", W_enc.T)):
        columns[f"{name}_neighbours"], columns[f"{name}_cosines"] = neighbours(rows)
    columns["decoder_norm"] = W_dec.float().norm(dim=1).cpu().numpy()
    if W_enc.shape[0] != W_dec.shape[1]:
        return columns
    products = torch.linalg.vecdot(W_enc.T.float(), W_dec.float())
    cosines = products / (W_enc.float().norm(dim=0) * W_dec.float().norm(dim=1))
    columns["encoder_decoder_cosine"] = cosines.cpu().numpy()
    return columns


@torch.no_grad()
def part_columns(
    W_dec: Float[Tensor, "d_sae d_out"], layout: Layout, spreads: Sequence[float]
) -> dict[str, list[Float[np.ndarray, " parts"]]]:
    """Return the column of relative norms of the decoder rows' parts.

    Args:
        W_dec: any type; norms are in float32.
        layout: of what the rows write, of several parts.
        spreads: root mean square distance of each part's vectors from their mean. Norms are in these units, so that no
            part counts for more because its vectors are longer.
    """
    norms = [part.norm(dim=1) / spread for part, spread in zip(layout.split(W_dec.float()), spreads, strict=True)]
    return {"relative_norms": list(relative_norms(torch.stack(norms, dim=1)).cpu().numpy())}


def relative_norms(norms: Float[Tensor, "d_sae parts"]) -> Float[Tensor, "d_sae parts"]:
    """Return (1 + (own - other) / largest) / 2 for each part, with the largest norm of another part as `other`.

    1 means that a latent writes to this part alone, and 0.5 that another part has the same norm. For two parts these
    are the relative norms of the literature, one part's being 1 minus the other's.
    """
    largest, second = norms.topk(2, dim=1).values.unbind(1)
    is_largest = F.one_hot(norms.argmax(1), norms.shape[1]).bool()
    other = torch.where(is_largest, second.unsqueeze(1), largest.unsqueeze(1))
    return (1 + (norms - other) / largest.unsqueeze(1).clamp_min(torch.finfo(norms.dtype).tiny)) / 2


@torch.no_grad()
def neighbours(
    rows: Float[Tensor, "latents d"], count: int = NEIGHBOURS, entries: int = ENTRIES
) -> tuple[list[Int[np.ndarray, " count"] | None], list[Float[np.ndarray, " count"] | None]]:
    """Return, for every row, the rows with the largest cosines, without the row itself, and these cosines.

    cosine(i, j) = rows_i . rows_j / (|rows_i| |rows_j|), for blocks of rows i against all rows j: 2 latents² d
    operations, and one block of `entries` cosines in memory. A row of zeros has no neighbours and is none.

    Args:
        rows: any type; products are in float32.
        count: neighbours per row, or fewer if there are not as many others.
        entries: cosines that are held at a time.
    """
    rows = rows.float()
    norms = rows.norm(dim=1)
    has_direction = norms > 0
    inverse = torch.where(has_direction, 1 / norms, 0.0)
    count = max(0, min(count, int(has_direction.sum()) - 1))
    indices = torch.empty(len(rows), count, dtype=torch.int32)
    cosines = torch.empty(len(rows), count)
    for block in _blocks(len(rows), len(rows), entries):
        found = ((rows[block] * inverse[block, None]) @ rows.T).mul_(inverse)
        found[:, ~has_direction] = -torch.inf
        own = torch.arange(len(found), device=rows.device)
        found[own, own + block.start] = -torch.inf
        best = found.topk(count, dim=1)
        indices[block], cosines[block] = best.indices.int().cpu(), best.values.cpu()
    known = has_direction.tolist()
    return _lists(indices, known), _lists(cosines, known)


@torch.no_grad()
def logit_columns(
    W_dec: Float[Tensor, "d_sae d_in"],
    unembedding: Unembedding,
    into_stream: Float[Tensor, "d_in d_model"],
    entries: int = ENTRIES,
) -> tuple[dict[str, Any], Int[np.ndarray, "d_sae top"]]:
    """Return the columns of the latent store about logits, and every latent's top tokens for the input score.

    A latent's effects are `unembedding.effects(direction)`, with direction = W_dec_i / |W_dec_i| @ into_stream, through
    the final norm and without it. With m the mean over the vocabulary and s the standard deviation, skew is the mean of
    ((effect - m) / s)³ and kurtosis the mean of ((effect - m) / s)⁴; both are of the effects through the norm. These
    are direct effects: later blocks also read the direction, which the weights alone do not show.

    A latent whose row is zero has nulls, and -1 as its top tokens.

    Args:
        W_dec: any type; products are in float32.
        unembedding: of the language model.
        into_stream: the matrix by which a vector at the site is added to the residual stream.
        entries: logits that are held at a time.
    """
    d_vocab = unembedding.W_U.shape[1]
    top, bottom = min(max(LOGITS, INPUT_LOGITS), d_vocab), min(LOGITS, d_vocab)
    norms = W_dec.float().norm(dim=1)
    has_direction = norms > 0
    kept: dict[str, Tensor] = {}

    def keep(**found: Tensor) -> None:
        # In tensors of all latents: small ones of each block between the large ones would fragment the memory.
        for name, values in found.items():
            if name not in kept:
                kept[name] = torch.empty(len(W_dec), *values.shape[1:], dtype=values.dtype)
            kept[name][block] = values.cpu()

    for block in _blocks(len(W_dec), d_vocab, entries):
        rows = W_dec[block].float() / norms[block].where(has_direction[block], 1.0)[:, None]
        directions = rows.to(into_stream) @ into_stream
        effects = unembedding.effects(directions)
        largest, least = effects.topk(top, dim=1), effects.topk(bottom, dim=1, largest=False)
        keep(input_tokens=largest.indices)
        keep(logit_top=largest.indices[:, :LOGITS].int(), logit_top_values=largest.values[:, :LOGITS])
        keep(logit_bottom=least.indices.int(), logit_bottom_values=least.values)
        effects.sub_(effects.mean(1, keepdim=True))
        squares = effects.square()
        variance = squares.mean(1)
        keep(logit_std=variance.sqrt(), logit_skew=(squares * effects).mean(1) / variance**1.5)
        keep(logit_kurtosis=squares.square_().mean(1) / variance.square())
        del squares
        effects = unembedding.effects(directions, through_norm=False)
        largest, least = effects.topk(bottom, dim=1), effects.topk(bottom, dim=1, largest=False)
        keep(raw_logit_top=largest.indices.int(), raw_logit_top_values=largest.values)
        keep(raw_logit_bottom=least.indices.int(), raw_logit_bottom_values=least.values)

    input_tokens = kept.pop("input_tokens").numpy()
    input_tokens[~has_direction.cpu().numpy()] = -1
    known = has_direction.tolist()
    columns: dict[str, Any] = {}
    for name, found in kept.items():
        columns[name] = (
            _lists(found, known) if found.dim() == 2 else found.where(has_direction.cpu(), torch.nan).numpy()
        )
    return columns, input_tokens


def _blocks(count: int, width: int, entries: int) -> Iterator[slice]:
    """Yield slices of rows so that a block of them has at most this many entries, and at least one row."""
    size = max(1, entries // width)
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _lists(rows: Tensor, known: list[bool]) -> list[np.ndarray | None]:
    return [row if has else None for row, has in zip(rows.numpy(), known, strict=True)]
