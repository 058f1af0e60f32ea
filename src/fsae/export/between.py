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
from fsae.autoencoders.layout import Block, Ends, Layout, PartNorm
from fsae.autoencoders.record import SAELensForm

_TRANSCODER, _SKIP, _CROSSCODER = "transcoder", "skip_transcoder", "crosscoder"
_PER_LAYER, _CROSS_LAYER = "per_layer_transcoder", "cross_layer_transcoder"
# Those whose layouts are described in words; a name that ends in another one comes first.
_OF_PARTS = (_PER_LAYER, _CROSS_LAYER, _CROSSCODER)
_KINDS = (*_OF_PARTS, _SKIP, _TRANSCODER)
# The keys of cfg.json that describe ends.
_WORDS = ("d_out", "parts", "target_parts", "part_norm", "blocks", "skip")
# SAELens' architectures that it has between two sites.
_IN_SAELENS = ("standard", "jumprelu")


def saelens_form(autoencoder: Autoencoder) -> SAELensForm:
    """Return a dictionary as SAELens' format holds it, with its layouts."""
    form, ends = autoencoder.to_saelens(), autoencoder.ends
    if ends.plain:
        return form
    kind = _kind_of(ends)
    # SAELens' name for ReLU codes is that of the kind alone.
    name = kind if kind not in _OF_PARTS and form.architecture == "standard" else f"{form.architecture}_{kind}"
    tensors, config = dict(form.tensors), {**form.config, "d_out": autoencoder.d_out}
    if ends.skip:
        tensors["W_skip"] = _skip_matrix(autoencoder)
    if kind in _OF_PARTS:
        config |= {"parts": [list(part) for part in ends.input.parts], "part_norm": ends.part_norm.value}
        if not ends.same:
            config |= {"target_parts": [list(part) for part in ends.target.parts], "skip": ends.skip}
        if ends.blocks:
            config["blocks"] = [
                {"latents": latents.stop - latents.start, "reads": list(block.reads), "writes": list(block.writes)}
                for block, latents in zip(ends.blocks, ends.latents(autoencoder.d_sae), strict=True)
            ]
    known = form.known and kind not in _OF_PARTS and form.architecture in _IN_SAELENS
    return replace(form, architecture=name, tensors=tensors, config=config, known=known)


def _kind_of(ends: Ends) -> str:
    if ends.same:
        return _CROSSCODER
    if not ends.blocks:
        return _SKIP if ends.skip else _TRANSCODER
    return _PER_LAYER if all(len(block.writes) == 1 for block in ends.blocks) else _CROSS_LAYER


@dataclass(frozen=True)
class Kind:
    """A kind of dictionary between sites, as its architecture's name ends.

    Attributes:
        name: this ending.
        words: what `cfg.json` says of its ends.
    """

    name: str
    words: Mapping[str, Any]

    def ends(self, d_in: int, d_out: int, d_sae: int) -> Ends:
        """Return the ends of these widths and this number of latents.

        Raises:
            ValueError: parts or blocks are not described, or do not add up to them.
        """
        if self.name not in _OF_PARTS:
            return Ends(input=Layout.of(d_in, "input"), target=Layout.of(d_out, "target"), skip=self.name == _SKIP)
        layout = self._layout("parts", d_in)
        target = layout if self.name == _CROSSCODER else self._layout("target_parts", d_out)
        if target.width != d_out:
            raise ValueError(f"parts has {target.width} dimensions together, but d_out is {d_out}")
        try:
            norm = PartNorm(self.words.get("part_norm", PartNorm.sum.value))
        except ValueError:
            raise ValueError(f"part_norm is {self.words['part_norm']!r}; it must be sum or joint") from None
        return Ends(
            input=layout,
            target=target,
            skip=self.words.get("skip") is True,
            part_norm=norm,
            blocks=self._blocks(len(layout.parts), len(target.parts), d_sae),
        )

    def _layout(self, key: str, width: int) -> Layout:
        said = self.words.get(key)
        try:
            parts = tuple((str(part), int(each)) for part, each in said or ())
        except (TypeError, ValueError):
            raise ValueError(f"{key} is {said!r}; it must list names and widths") from None
        if len({name for name, _ in parts}) < len(parts):
            raise ValueError(f"{key} is {said!r}; each part must have a name of its own")
        layout = Layout(parts)
        if layout.width != width:
            raise ValueError(f"{key} has {layout.width} dimensions together, but the vectors have {width}")
        return layout

    def _blocks(self, inputs: int, targets: int, d_sae: int) -> tuple[Block, ...]:
        said = self.words.get("blocks") or []

        def parts(block: dict[str, Any], key: str, count: int) -> tuple[int, ...]:
            found = [int(part) for part in block[key]]
            if not found or found != list(range(found[0], found[-1] + 1)) or found[0] < 0 or found[-1] >= count:
                raise ValueError
            return tuple(found)

        try:
            counts = [int(block["latents"]) for block in said]
            if said and (sum(counts) != d_sae or min(counts) < 1):
                raise ValueError
            return tuple(
                Block(count / d_sae, parts(block, "reads", inputs), parts(block, "writes", targets))
                for block, count in zip(said, counts, strict=True)
            )
        except (TypeError, ValueError, KeyError):
            raise ValueError(
                f"blocks is {said!r}; it must list numbers of latents that are {d_sae} together, and the parts that "
                "they read and write, which lie side by side"
            ) from None


def kind_of(autoencoder: Autoencoder) -> str:
    """Return the kind of a dictionary in words, such as "skip transcoder"."""
    return "sparse autoencoder" if autoencoder.ends.plain else _kind_of(autoencoder.ends).replace("_", " ")


def split_name(config: Mapping[str, Any]) -> tuple[dict[str, Any], Kind | None]:
    """Return the config with the architecture of the codes alone, and the kind; None for an autoencoder of one site."""
    name = config.get("architecture", "standard")
    kind = next((each for each in _KINDS if str(name).endswith(each)), None)
    if kind is None:
        return dict(config), None
    of_codes = str(name).removesuffix(kind).rstrip("_") or "standard"
    plain = {key: value for key, value in config.items() if key not in _WORDS}
    # b_dec is no point of the inputs; SAELens refuses the contrary.
    if kind != _CROSSCODER:
        plain["apply_b_dec_to_input"] = False
    plain["architecture"] = of_codes
    return plain, Kind(kind, {key: config[key] for key in _WORDS if key in config})


@torch.no_grad()
def _skip_matrix(autoencoder: Autoencoder) -> Tensor:
    """Return the matrix of the linear path, (d_out, d_in); of one of low rank the product."""
    unit = torch.eye(autoencoder.d_in, dtype=autoencoder.W_dec.dtype, device=autoencoder.W_dec.device)
    path = autoencoder.linear_path(unit)
    assert path is not None
    return path.T
