"""Dictionaries between sites in SAELens' format: the names of their architectures, and their further tensors and words.

SAELens has `transcoder`, `skip_transcoder`, `jumprelu_transcoder` and `jumprelu_skip_transcoder`. Every other one has a
name that SAELens refuses, made in the same way ("topk_transcoder", "jumprelu_crosscoder"), so that no file is opened as
something that decodes differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends, Layout, PartNorm
from fsae.autoencoders.record import SAELensForm

_TRANSCODER, _SKIP, _CROSSCODER = "transcoder", "skip_transcoder", "crosscoder"
# SAELens' architectures that it has between two sites.
_IN_SAELENS = ("standard", "jumprelu")


def between(form: SAELensForm, autoencoder: Autoencoder) -> SAELensForm:
    """Return the form of a dictionary with its layouts; that of an autoencoder of one site as it is."""
    ends = autoencoder.ends
    if ends.plain:
        return form
    kind = (_SKIP if ends.skip else _TRANSCODER) if not ends.same else _CROSSCODER
    # SAELens' name for ReLU codes is that of the kind alone.
    name = kind if kind != _CROSSCODER and form.architecture == "standard" else f"{form.architecture}_{kind}"
    tensors, config = dict(form.tensors), {**form.config, "d_out": autoencoder.d_out}
    if ends.skip:
        tensors["W_skip"] = _skip_matrix(autoencoder)
    if kind == _CROSSCODER:
        config |= {"parts": [list(part) for part in ends.input.parts], "part_norm": ends.part_norm.value}
    known = form.known and kind != _CROSSCODER and form.architecture in _IN_SAELENS
    return replace(form, architecture=name, tensors=tensors, config=config, known=known)


@dataclass(frozen=True)
class Kind:
    """A kind of dictionary between sites, as its architecture's name ends.

    Attributes:
        skip: whether it has a linear path.
        parts: names and widths of a crosscoder's parts; None for a transcoder.
        part_norm: the norm of a crosscoder's decoder rows.
    """

    skip: bool = False
    parts: Any = None
    part_norm: Any = PartNorm.sum.value

    @property
    def two_sites(self) -> bool:
        """True if it writes another site than it reads."""
        return self.parts is None

    def ends(self, d_in: int, d_out: int) -> Ends:
        """Return the ends of these widths.

        Raises:
            ValueError: a crosscoder's parts are not described, or do not add up to them.
        """
        if self.parts is None:
            return Ends(input=Layout.of(d_in, "input"), target=Layout.of(d_out, "target"), skip=self.skip)
        try:
            layout = Layout(tuple((str(part), int(width)) for part, width in self.parts))
            norm = PartNorm(self.part_norm)
        except (TypeError, ValueError):
            raise ValueError(
                f"parts is {self.parts!r}; it must list names and widths, and part_norm be sum or joint"
            ) from None
        if not layout.width == d_in == d_out:
            raise ValueError(f"parts has {layout.width} dimensions together, but d_in is {d_in} and d_out {d_out}")
        return Ends(input=layout, target=layout, part_norm=norm)


def split_name(config: Mapping[str, Any]) -> tuple[dict[str, Any], Kind | None]:
    """Return the config with the architecture of the codes alone, and the kind; None for an autoencoder of one site."""
    name = config.get("architecture", "standard")
    kind = next((each for each in (_SKIP, _TRANSCODER, _CROSSCODER) if str(name).endswith(each)), None)
    if kind is None:
        return dict(config), None
    of_codes = str(name).removesuffix(kind).rstrip("_") or "standard"
    plain = {key: value for key, value in config.items() if key not in ("d_out", "parts", "part_norm")}
    # b_dec is no point of the inputs; SAELens refuses the contrary.
    if kind != _CROSSCODER:
        plain["apply_b_dec_to_input"] = False
    plain["architecture"] = of_codes
    if kind != _CROSSCODER:
        return plain, Kind(skip=kind == _SKIP)
    return plain, Kind(parts=config.get("parts") or (), part_norm=config.get("part_norm", PartNorm.sum.value))


@torch.no_grad()
def _skip_matrix(autoencoder: Autoencoder) -> Tensor:
    """Return the matrix of the linear path, (d_out, d_in); of one of low rank the product."""
    unit = torch.eye(autoencoder.d_in, dtype=autoencoder.W_dec.dtype, device=autoencoder.W_dec.device)
    path = autoencoder.linear_path(unit)
    assert path is not None
    return path.T
