"""`attention`: which heads and which source positions a latent of an attention layer reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import AffineMap
from fsae.evaluation.causal.direct_attribution import HeadMap, contributions, encoder_of, pairs_at_once
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.language_models.attention import Attention
from fsae.language_models.sites import Site, SiteName
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, SEED, between
from fsae.seeds import generator_for
from fsae.sources.massive import within
from fsae.sources.source import HeldOutText

# The largest error of the sum, as a share of the pre-activations, that rounding explains.
_TOLERANCE = 1e-3
_RANDOM = {"random": "random directions"}


class _Rows(NamedTuple):
    """Rows of text in one forward pass.

    Attributes:
        attention: of the layer.
        x: activations at the site.
        counted: positions whose latents count.
        part: which of the repetitions each row belongs to.
    """

    attention: Attention
    x: Float[Tensor, "row position d_in"]
    counted: Bool[Tensor, "row position"]
    part: Int[Tensor, " row"]


class _Sums:
    """Sums over the positions at which a latent is on, for each repetition and latent.

    Attributes:
        heads: absolute contribution of each head.
        current, first: absolute contributions of the position itself, and of the row's first one.
        all: absolute contributions of all positions and heads.
        error, size: absolute error of the sum, and absolute pre-activation.
    """

    def __init__(self, parts: int, d_sae: int, heads: int, device: torch.device):
        self.heads = torch.zeros(parts, d_sae, heads, dtype=torch.float64, device=device)
        self.current, self.first, self.all, self.count = (self.heads[:, :, 0].clone() for _ in range(4))
        self.error = self.size = 0.0

    def add(
        self,
        part: Int[Tensor, " pair"],
        latents: Int[Tensor, " pair"],
        positions: Int[Tensor, " pair"],
        by_source: Float[Tensor, "pair head source"],
    ) -> None:
        """Add the contributions of some pairs of a position and a latent."""
        magnitudes = by_source.abs().double()
        place = part, latents
        self.heads.index_put_(place, by_source.sum(2).abs().double(), accumulate=True)
        own = magnitudes.gather(2, positions[:, None, None].expand(-1, magnitudes.shape[1], 1))
        for total, added in (
            (self.current, own.sum((1, 2))),
            (self.first, magnitudes[:, :, 0].sum(1)),
            (self.all, magnitudes.sum((1, 2))),
            (self.count, torch.ones_like(own[:, 0, 0])),
        ):
            total.index_put_(place, added, accumulate=True)

    def numbers(self, part: int) -> dict[str, float]:
        """Return means over the latents that are on in a repetition."""
        on = self.all[part] > 0
        if not on.any():
            return dict.fromkeys(("dfa_head_share", "dfa_current_token", "dfa_first_token"), float("nan"))
        heads, everything = self.heads[part][on], self.all[part][on]
        return {
            "dfa_head_share": (heads.amax(1) / heads.sum(1).clamp_min(1e-30)).mean().item(),
            "dfa_current_token": (self.current[part][on] / everything).mean().item(),
            "dfa_first_token": (self.first[part][on] / everything).mean().item(),
        }


@dataclass(frozen=True, kw_only=True)
class AttentionHeads(Evaluation, group="eval.attention"):
    """Direct feature attribution of latents by head and source position (Kissane et al. 2024, arXiv 2406.17759).

    For a dictionary at attn_z, or at attn_out if attention's output is a linear map of it. A latent's pre-activation at
    a position is a sum over heads and source positions of pattern * value @ (the head's part of the encoder's column),
    plus a constant. Heads that share values in grouped-query attention have a part each. The sum is compared with the
    pre-activation that the dictionary computes, and an error is raised if they differ.

    A head's share of a latent is |its contribution|, summed over the positions at which the latent is on, over the sum
    over heads. Shares of positions are those of absolute contributions of single heads and positions. The control has
    random directions in place of the encoder's columns, at the same positions.

    Attributes:
        tokens: held-out tokens.
        seeds: parts of the text; the numbers are means over them, and the noise is their standard deviation.
        seed: of the random directions.
    """

    tokens: int = field(default=2048, metadata=COUNT)
    seeds: int = field(default=3, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)

    in_sweeps: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "attention", "one_site"})
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("dfa_head_share", Meaning("share of a latent that its strongest head has"), _RANDOM),
        **accompanied(
            "dfa_current_token", Meaning("share of a latent that its own token has", shown=Shown.files), _RANDOM
        ),
        **accompanied(
            "dfa_first_token", Meaning("share of a latent that the first token has", shown=Shown.files), _RANDOM
        ),
        "decoder_head_share": Meaning("share of a decoder row that its strongest head has", shown=Shown.files),
        "dfa_error": Meaning("error of the sum of contributions", better=Better.less, shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and the head shares of each latent as a file.

        Raises:
            ValueError: the site is not one of attention, or the contributions do not sum to the pre-activations.
        """
        text = subject.source.text
        assert text is not None
        if not text.site.of_attention:
            raise ValueError(
                f"eval.attention is for dictionaries of an attention layer (site=attn_z or site=attn_out), and this "
                f"one is at {text.site}; leave attention out of eval"
            )
        with text.model.in_float32(), torch.no_grad():
            found = self._sums(text, subject)
        measured = []
        for run, own in zip(subject.runs, subject.by_run(found), strict=True):
            pairs = zip(run.autoencoders, own, strict=True)
            numbers = [self._numbers(text.site, autoencoder, *sums) for autoencoder, sums in pairs]
            shares = [_shares(sums) for sums, _ in own]
            content = {"attention_heads.json": {"site": str(text.site), "members": shares}}
            measured.append(Measured(numbers, files=content))
        return measured

    def _sums(self, text: HeldOutText, subject: Subject) -> list[tuple[_Sums, _Sums]]:
        """Return the sums of each dictionary and of its control."""
        tokens, keep = text.held_out_rows(self.tokens)
        if len(tokens) < self.seeds:
            raise ValueError(
                f"the held-out text has {len(tokens)} rows, and eval.attention.seeds is {self.seeds}; give the dataset "
                "more text, or lower it"
            )
        progress = Progress("attributing latents to heads", tokens.numel() * len(subject.autoencoders))
        encoders = [encoder_of(each) for each in subject.autoencoders]
        controls = [_random(each, self.seed) for each in encoders]
        heads, found = None, list[tuple[_Sums, _Sums]]()
        for begin in range(0, len(tokens), text.rows_at_once):
            subject.heartbeat()
            some = slice(begin, begin + text.rows_at_once)
            rows = self._read(text, tokens[some], keep[some], torch.arange(len(tokens))[some] % self.seeds)
            heads = heads or _heads(text, rows)
            _check_heads(text, rows, heads)
            count = rows.attention.pattern.shape[1]
            if not found:
                shapes = [(self.seeds, each.d_sae, count, rows.x.device) for each in subject.autoencoders]
                found = [(_Sums(*shape), _Sums(*shape)) for shape in shapes]
            for autoencoder, encoder, control, sums in zip(
                subject.autoencoders, encoders, controls, found, strict=True
            ):
                _add(autoencoder, encoder, control, heads, rows, *sums)
                progress.advance(rows.counted.numel())
        progress.close()
        return found

    def _read(self, text: HeldOutText, tokens: Tensor, keep: Tensor, part: Tensor) -> _Rows:
        attention = text.model.attention(tokens, text.site.layer)
        if text.site.name is SiteName.attn_z:
            x = attention.outputs().flatten(2)
        else:
            x = text.model.activations(tokens, [text.site])[text.site]
        counted = keep.to(x.device)
        if text.norm_limit is not None:
            counted = counted & within(x.flatten(0, 1), text.norm_limit).view(counted.shape)
        return _Rows(attention, x, counted, part.to(x.device))

    def _numbers(self, site: Site, autoencoder: Autoencoder, sums: _Sums, control: _Sums) -> dict[str, float]:
        error = sums.error / max(sums.size, 1e-30)
        if error > _TOLERANCE:
            raise ValueError(
                f"at {site} the contributions of heads and positions do not sum to the latents' pre-activations (they "
                f"differ by {error:.1%}), so they would explain nothing; choose another site or model"
            )
        of_part = [sums.numbers(part) for part in range(self.seeds)]
        of_control = [control.numbers(part) for part in range(self.seeds)]
        found = {"dfa_error": error}
        for name in of_part[0]:
            found |= mean_and_noise(name, [each[name] for each in of_part])
            found |= {f"{name}_random": mean_and_noise(name, [each[name] for each in of_control])[name]}
        if site.name is SiteName.attn_z:
            norms = autoencoder.W_dec.detach().unflatten(1, (sums.heads.shape[2], -1)).norm(dim=2)
            alive = norms[norms.sum(1) > 0]
            found["decoder_head_share"] = (alive.amax(1) / alive.sum(1)).mean().item()
        return found


def _add(
    autoencoder: Autoencoder,
    encoder: AffineMap,
    control: AffineMap,
    heads: HeadMap,
    rows: _Rows,
    sums: _Sums,
    of_control: _Sums,
) -> None:
    """Add what heads and positions contribute to the latents that are on in some rows."""
    places = rows.counted.nonzero()
    record = autoencoder.encode(rows.x[rows.counted].to(autoencoder.W_dec))
    affine, codes = record.pre_activations, record.codes.dense()
    assert affine is not None
    pair, latents = codes.nonzero(as_tuple=True)
    for part in torch.arange(len(pair)).split(pairs_at_once(rows.attention)):
        some, of_latents = pair[part], latents[part]
        row, position = places[some].T
        where = (rows.part[row], of_latents, position)
        found = contributions(rows.attention, heads, encoder, row, position, of_latents)
        sums.add(*where, found.by_source)
        pre = (affine.centred[some] * affine.weight.T[of_latents]).sum(1) + affine.bias[of_latents]
        summed = found.by_source.sum((1, 2)) + found.constant
        sums.error += (summed - pre.to(summed)).abs().sum().item()
        sums.size += pre.abs().sum().item()
        of_control.add(*where, contributions(rows.attention, heads, control, row, position, of_latents).by_source)


def _random(encoder: AffineMap, seed: int) -> AffineMap:
    """Return an encoder whose directions are random."""
    shape = encoder.weight.shape
    drawn = torch.randn(shape, generator=generator_for(seed, "attention")).to(encoder.weight)
    return AffineMap(encoder.inputs, drawn, encoder.bias)


def _heads(text: HeldOutText, rows: _Rows) -> HeadMap:
    """Return the map from the heads' outputs to the vectors at the site.

    Raises:
        ValueError: there is none.
    """
    z = Site(name=SiteName.attn_z, layer=text.site.layer)
    if text.site == z:
        width = rows.x.shape[2]
        return HeadMap(torch.eye(width, device=rows.x.device), torch.zeros(width, device=rows.x.device))
    matrix = text.model.into_stream(z)
    if matrix is None:
        raise ValueError(_no_map(text))
    matrix = matrix.to(rows.x)
    return HeadMap(matrix, (rows.x[0, 0] - rows.attention.outputs().flatten(2)[0, 0] @ matrix))


def _check_heads(text: HeldOutText, rows: _Rows, heads: HeadMap) -> None:
    made = rows.attention.outputs().flatten(2) @ heads.matrix + heads.rest
    if (made - rows.x).norm() > _TOLERANCE * rows.x.norm():
        raise ValueError(_no_map(text))


def _no_map(text: HeldOutText) -> str:
    return (
        f"at {text.site} of model {text.model.name} attention's output is no affine map of the heads' outputs, so "
        "nothing can be assigned to a head; train the dictionary at site=attn_z instead"
    )


def _shares(sums: _Sums) -> dict[str, Sequence]:
    """Return what is known of each latent that is on: its heads' shares and those of positions."""
    heads, everything = sums.heads.sum(0), sums.all.sum(0)
    on = (everything > 0).nonzero().squeeze(1)
    shares = heads[on] / heads[on].sum(1, keepdim=True).clamp_min(1e-30)
    return {
        "latent": on.tolist(),
        "samples": sums.count.sum(0)[on].long().tolist(),
        "heads": [[round(each, 4) for each in own] for own in shares.tolist()],
        "current_token": [round(each, 4) for each in (sums.current.sum(0)[on] / everything[on]).tolist()],
        "first_token": [round(each, 4) for each in (sums.first.sum(0)[on] / everything[on]).tolist()],
    }
