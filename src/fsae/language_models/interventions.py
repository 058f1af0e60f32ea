"""Interventions: edits of a dictionary's latents inside a language model's forward passes.

An edit replaces the activations x at the dictionary's site by

    decode(edited codes) + error,    error = x - decode(codes),    codes = encode(x)

where codes and error belong to the activations that arrive at the site, whatever the edit is. The decoder is affine,
so this is x + (edited codes - codes) @ W_dec, which is how it is computed: the error is never rounded, an edit that
changes no code changes no bit of x, and no edit is cancelled by an error that was computed after it. The codes come
from the autoencoder alone, without hooks and without gradient.

A transcoder encodes x at one site and writes y at a later one. Its edits replace y by y + (edited codes - codes) @
W_dec, with the codes of the x of the same forward pass; x stays as it is, and so does the linear path.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.left_out import LeftOut
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import Replacement
from fsae.ranges import Ranged, between

Scope = Literal["all", "prompt", "generated", "last"]
Unit = Literal["largest", "absolute"]

_LATENT = between(least=0, most=10**9, meaning="the index of a latent")
_STRENGTH = between(least=-1e6, most=1e6)
_NOTHING = LeftOut()


@dataclass(frozen=True)
class Edit(Ranged, ABC):
    """An edit of one latent: base class of `Ablate`, `Scale`, `Add` and `Clamp`.

    Tokens that the dictionary's training left out, such as special tokens, are never edited.

    Attributes:
        latent: index of the latent.
        scope: the positions that are edited: "all"; those of the "prompt"; those of "generated" tokens; or the "last"
            one of the prompt, from which the first generated token is predicted. Text that is only read is a prompt.
        after: a token, by its id or its text: only positions after its first occurrence in a row are edited.
        decay: the edit's share at each further position of the scope, as a factor: 0.9 makes the edit's change of the
            code 0.9 times as large at the second position, 0.81 times at the third. 1 for no decay.

    Raises:
        ValueError: a number is out of its range, or there is no such scope.
    """

    latent: int = field(metadata=_LATENT)
    scope: Scope = field(default="all", kw_only=True)
    after: int | str | None = field(default=None, kw_only=True)
    decay: float = field(default=1.0, kw_only=True, metadata=between(above=0, most=1))

    def __post_init__(self):
        super().__post_init__()
        _check_choice(f"{type(self).__name__}.scope", self.scope, get_args(Scope))

    @property
    def relative(self) -> bool:
        """Return whether the edit is in units of the latent's largest activation."""
        return False

    def with_strength(self, strength: float) -> Self:
        """Return the edit with another strength.

        Raises:
            ValueError: this kind of edit has none, or it cannot have this one.
        """
        raise ValueError(f"{type(self).__name__} has no strength to vary; use Scale, Add or Clamp")

    @abstractmethod
    def edited(self, codes: Float[Tensor, " vectors"], largest: float) -> Float[Tensor, " vectors"]:
        """Return what the latent's codes become.

        Args:
            codes: of the latent.
            largest: the latent's largest activation; 1 if the edit is absolute.
        """


@dataclass(frozen=True)
class Ablate(Edit, group="Ablate"):
    """An edit that sets a latent's code to zero."""

    def edited(self, codes: Float[Tensor, " vectors"], largest: float) -> Float[Tensor, " vectors"]:
        """Return zeros."""
        return torch.zeros_like(codes)


@dataclass(frozen=True)
class Scale(Edit, group="Scale"):
    """An edit that multiplies a latent's code.

    Attributes:
        by: the factor.
    """

    by: float = field(metadata=between(least=0, most=1e6))

    def with_strength(self, strength: float) -> Self:
        """Return the edit with this factor."""
        return replace(self, by=strength)

    def edited(self, codes: Float[Tensor, " vectors"], largest: float) -> Float[Tensor, " vectors"]:
        """Return the codes times the factor."""
        return codes * self.by


@dataclass(frozen=True)
class StrengthEdit(Edit):
    """An edit with a strength: base class of `Add` and `Clamp`.

    Attributes:
        strength: a number of units; a negative one pushes away from what the latent stands for.
        unit: "largest" for the latent's largest activation, "absolute" for the code's own unit.
    """

    strength: float = field(metadata=_STRENGTH)
    unit: Unit = field(default="largest", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _check_choice(f"{type(self).__name__}.unit", self.unit, get_args(Unit))

    @property
    def relative(self) -> bool:
        return self.unit == "largest"

    def with_strength(self, strength: float) -> Self:
        return replace(self, strength=strength)


@dataclass(frozen=True)
class Add(StrengthEdit, group="Add"):
    """An edit that adds to a latent's code, whether the latent is active or not."""

    def edited(self, codes: Float[Tensor, " vectors"], largest: float) -> Float[Tensor, " vectors"]:
        """Return the codes plus the strength."""
        return codes + self.strength * largest


@dataclass(frozen=True)
class Clamp(StrengthEdit, group="Clamp"):
    """An edit that sets a latent's code to one value."""

    def edited(self, codes: Float[Tensor, " vectors"], largest: float) -> Float[Tensor, " vectors"]:
        """Return the strength at every place."""
        return torch.full_like(codes, self.strength * largest)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


class Intervention:
    """Edits of a dictionary's latents. Edits of one latent act one after the other.

    Args:
        autoencoder: in raw units and in evaluation mode.
        site: the site whose activations it reads.
        edits: with `after` as the id of a token.
        largest: the largest activation of each latent that an edit in its unit names.
        left_out: positions that are not edited, because the dictionary's training left them out.
        written: the site whose activations it writes, later in a forward pass; None for the one that it reads.

    Raises:
        ValueError: a latent does not exist, or its largest activation is missing or zero.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        site: Site,
        edits: Sequence[Edit],
        *,
        largest: Mapping[int, float],
        left_out: LeftOut = _NOTHING,
        written: Site | None = None,
    ):
        assert not autoencoder.training
        assert not any(isinstance(edit.after, str) for edit in edits)
        for edit in edits:
            _check_latent(edit, autoencoder.d_sae, largest)
        self.site, self.written = site, written or site
        self._autoencoder, self._edits, self._left_out = autoencoder, edits, left_out
        self._largest = [largest[edit.latent] if edit.relative else 1.0 for edit in edits]
        self._latents = sorted({edit.latent for edit in edits})

    def within(self, forward_pass: ForwardPass) -> list[Replacement]:
        """Return the replacements of a forward pass: one that reads, if another site is read, and one that writes."""
        if self.written == self.site:
            return [(self.site, partial(self.edited, forward_pass))]
        changes: list[_Change] = []

        def read(x: Float[Tensor, "row computed d_in"]) -> None:
            changes.append(self._change_at(forward_pass, x))

        def write(y: Float[Tensor, "row computed d_out"]) -> Float[Tensor, "row computed d_out"]:
            return changes.pop().of(y)

        return [(self.site, read), (self.written, write)]

    def edited(
        self, forward_pass: ForwardPass, x: Float[Tensor, "row computed d_in"]
    ) -> Float[Tensor, "row computed d_in"]:
        """Return activations that are both read and written with the latents edited, in their type.

        Args:
            forward_pass: the pass in which they arise.
            x: the activations at the positions that the pass computes.
        """
        return self._change_at(forward_pass, x).of(x)

    @torch.no_grad()
    def _change_at(self, forward_pass: ForwardPass, x: Float[Tensor, "row computed d_in"]) -> "_Change":
        """Return what the edits of the codes of `x` change, and where."""
        shares = self.shares(forward_pass).to(x.device)
        touched = shares.any(0) & self._left_out.within(x)
        return _Change(touched, self._change(x[touched], shares[:, touched]))

    def shares(self, forward_pass: ForwardPass) -> Float[Tensor, "edit row computed"]:
        """Return each edit's share at the positions that a pass computes: 0 outside its scope, less by its decay."""
        tokens, real = forward_pass.tokens, forward_pass.real
        counted = self._left_out.counted(tokens, real)
        shares = torch.zeros(len(self._edits), *tokens.shape, device=tokens.device)
        for share, edit in zip(shares, self._edits, strict=True):
            scope = _within(edit.scope, forward_pass.prompt, counted)
            if edit.after is not None:
                occurs = (tokens == edit.after) & real
                scope &= occurs.cumsum(1) - occurs.long() > 0
            share.copy_(edit.decay ** (scope.cumsum(1) - 1) * scope)
        return shares[:, :, forward_pass.first :]

    def _change(
        self, x: Float[Tensor, "vectors d_in"], shares: Float[Tensor, "edit vectors"]
    ) -> Float[Tensor, "vectors d_out"]:
        """Return (edited codes - codes) @ W_dec, in the unit of each sample."""
        W_dec = self._autoencoder.W_dec
        latents = torch.tensor(self._latents, dtype=torch.long, device=W_dec.device)
        codes = self._autoencoder.encode(x.to(W_dec), sparse=True).codes.of_latents(latents)
        edited = codes.clone()
        for edit, largest, share in zip(self._edits, self._largest, shares.to(W_dec), strict=True):
            column = edited[:, self._latents.index(edit.latent)]
            column += share * (edit.edited(column, largest) - column)
        change = (edited - codes) @ W_dec[latents]
        scale = self._autoencoder.sample_scale(x.to(W_dec))
        return change if scale is None else change * scale


@dataclass(frozen=True, eq=False)
class _Change:
    """Change of some of the activations of a forward pass.

    Attributes:
        touched: positions, of those that the pass computes.
        added: to the activations there.
    """

    touched: Bool[Tensor, "row computed"]
    added: Float[Tensor, "touched d"]

    def of(self, y: Float[Tensor, "row computed d"]) -> Float[Tensor, "row computed d"]:
        """Return changed activations, in their type."""
        if len(self.added) == 0:
            return y
        vectors, replaced, added = y[self.touched], y.clone(), self.added.to(y.device)
        # Adding zero would change the sign of a negative zero.
        replaced[self.touched] = torch.where(added == 0, vectors, (vectors + added).to(y.dtype))
        return replaced


def _within(
    scope: Scope, prompt: Bool[Tensor, "row position"], counted: Bool[Tensor, "row position"]
) -> Bool[Tensor, "row position"]:
    """Return the positions of a scope, among those that count."""
    if scope == "prompt":
        return counted & prompt
    if scope == "generated":
        return counted & ~prompt
    if scope == "last":
        of_prompt = counted & prompt
        # At the last of n positions, n of them have been passed.
        passed = of_prompt.cumsum(1)
        return of_prompt & (passed == passed[:, -1:])
    return counted.clone()


def _check_latent(edit: Edit, d_sae: int, largest: Mapping[int, float]) -> None:
    name, latent = type(edit).__name__, edit.latent
    if latent >= d_sae:
        raise ValueError(f"{name}.latent is {latent}; the dictionary has the latents 0 to {d_sae - 1}")
    if not edit.relative:
        return
    if latent not in largest:
        raise ValueError(
            f"{name}: the largest activation of latent {latent} is unknown; give it with largest={{{latent}: ...}}, or "
            'give an absolute strength with unit="absolute"'
        )
    if largest[latent] == 0:
        raise ValueError(
            f"{name}: latent {latent} is active on none of the samples on which its largest activation was measured, "
            'so a strength has no unit; choose another latent, or give an absolute strength with unit="absolute"'
        )
