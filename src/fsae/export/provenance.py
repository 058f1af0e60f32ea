"""The origin of the vectors that a dictionary was trained on."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of the vectors that an autoencoder was trained on; None if an attribute does not apply.

    The names are SAELens' own, except for `model_note`, `max_activation_norm`, `prefix`, `chat_roles` and
    `pair_hook_names`. So is that of `matryoshka_widths`, which SAELens has among the settings of a training.

    Attributes:
        model_name: the language model, as TransformerLens and SAELens open it.
        model_note: the difference of its weights from those under that name, such as a quantisation or a revision.
        hook_name: TransformerLens' name of the site that it reads; of the first one if there are several.
        hook_name_out: of the site that it writes, the first one if there are several; None if it is the same one.
        hook_names: of all sites that it reads, if there are several, in their order.
        hook_names_out: of all sites that it writes, if there are several others.
        model_names: of a crosscoder over two models, the model that each of `hook_names` is of.
        model_notes: how the weights of each of these models differ from that name.
        hook_head_index: the attention head whose vectors they are, counted from 0; None for all heads together.
        context_size: tokens per sequence.
        prepend_bos: whether every sequence began with the model's first token.
        dataset_path: path or name of the text.
        exclude_special_tokens: ids of tokens whose activations were left out, or whether those of the
            tokenizer's special tokens were.
        seqpos_slice: start, and optionally stop and step, of the positions of a sequence that counted.
        max_activation_norm: activations of a greater norm were left out.
        max_activation_norms: such norms at all sites of a dictionary between several, inputs first.
        prefix: text that every row began with, and whose positions did not count.
        chat_roles: roles of a chat whose words counted.
        matryoshka_widths: numbers of first latents that were trained to reconstruct the vectors on their own.
        pair_hook_names: the sites of the two autoencoders of a Jacobian pair, in the order of their folders `0` and
            `1`.
    """

    model_name: str | None = None
    model_note: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    hook_names: list[str] | None = None
    hook_names_out: list[str] | None = None
    model_names: list[str] | None = None
    model_notes: list[str | None] | None = None
    hook_head_index: int | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    dataset_path: str | None = None
    exclude_special_tokens: list[int] | bool | None = None
    seqpos_slice: list[int | None] | None = None
    max_activation_norm: float | None = None
    max_activation_norms: list[float] | None = None
    prefix: str | None = None
    chat_roles: list[str] | None = None
    matryoshka_widths: list[int] | None = None
    pair_hook_names: list[str] | None = None

    @property
    def hooks_in(self) -> list[str]:
        """The names of the sites that it reads, one or several; none if they are unknown."""
        return self.hook_names or [name for name in (self.hook_name,) if name is not None]

    @property
    def hooks_out(self) -> list[str]:
        """The names of the sites that it writes."""
        return self.hook_names_out or ([self.hook_name_out] if self.hook_name_out is not None else self.hooks_in)

    @property
    def places(self) -> str:
        """The sites that it reads and writes, in words, with their language models."""
        models = self.model_names or [self.model_name]
        if len(set(models)) > 1:
            return " + ".join(f"{hook} of {model}" for hook, model in zip(self.hooks_in, models, strict=True))
        read, written = (" + ".join(hooks) for hooks in (self.hooks_in, self.hooks_out))
        return f"{read} -> {written} of {models[0]}" if self.writes_elsewhere else f"{read} of {models[0]}"

    @property
    def writes_elsewhere(self) -> bool:
        """True if it writes other sites than it reads."""
        return self.hook_name_out is not None or self.hook_names_out is not None


# Arguments of opening a language model that do not change its activations.
_HARMLESS_OPENING = {
    "dtype", "torch_dtype", "device", "device_map", "n_devices", "move_to_device", "low_cpu_mem_usage", "cache_dir",
    "local_files_only", "default_padding_side", "attn_implementation",
}  # fmt: skip

# Names in SAELens' oldest layout, of 2024, and their names today.
_OLDEST_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
}
# Keys that are read or refused, and may therefore not have two different values.
_SAID = {field.name for field in fields(Provenance)} | {*_OLDEST_NAMES.values(), "hook_name_out", "hook_point_out"}


def provenance_of(config: dict[str, Any], path: Path) -> Provenance:
    """Return the provenance in the words of SAELens' format, of any of its versions.

    Args:
        config: the content of cfg.json.
        path: the file that says so, for messages.

    Raises:
        ValueError: it contradicts itself, or names training vectors that fsae does not support: those of a
            language model that was opened in another way.
    """
    known = _flat(config, path)

    def read(name: str, kind: type, wanted: str) -> Any:
        value = known.get(name)
        # In Python True is a whole number.
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
            raise ValueError(f"{path}: {name} is {value!r}; it must be {wanted}, or null")
        return value

    hook_name, layer = read("hook_name", str, "the name of a site"), read("hook_layer", int, "a whole number")
    if layer is not None and (hook_name or "").startswith("blocks.") and f"blocks.{layer}." not in str(hook_name):
        raise ValueError(f"{path}: hook_name is {hook_name!r}, but hook_layer is {layer}; correct the wrong one")
    head = read("hook_head_index", int, "the index of an attention head")
    if head is not None and not (hook_name or "").endswith("hook_z"):
        raise ValueError(
            f"{path}: hook_head_index is {head}, but hook_name is {hook_name!r}, which is of no single attention head; "
            "correct the wrong one"
        )
    hook_out = read("hook_name_out", str, "the name of a site") or read("hook_point_out", str, "the name of a site")
    hooks, hooks_out = known.get("hook_names"), known.get("hook_names_out")
    pair = known.get("pair_hook_names")
    for name, names in (("hook_names", hooks), ("hook_names_out", hooks_out), ("pair_hook_names", pair)):
        if names is not None and not _is_list_of(names, str):
            raise ValueError(f"{path}: {name} is {names!r}; it must be a list of sites' names, or null")
    models, notes = known.get("model_names"), known.get("model_notes")
    for name, found, kind in (("model_names", models, str), ("model_notes", notes, str | None)):
        if found is not None and not (_is_list_of(found, kind) and len(found) == len(hooks or [])):
            raise ValueError(f"{path}: {name} is {found!r}; it must be a list with one for each of hook_names, or null")
    norms = known.get("max_activation_norms")
    if norms is not None and not (_is_list_of(norms, int | float) and all(0 < each < math.inf for each in norms)):
        raise ValueError(f"{path}: max_activation_norms is {norms!r}; it must be a list of positive numbers, or null")
    context_size = read("context_size", int, "a positive whole number")
    if context_size is not None and context_size < 1:
        raise ValueError(f"{path}: context_size is {context_size}; it must be a positive whole number, or null")
    special = known.get("exclude_special_tokens")
    if not (special is None or isinstance(special, bool) or _is_list_of(special, int)):
        raise ValueError(
            f"{path}: exclude_special_tokens is {special!r}; it must be true, false, a list of token ids, or null"
        )
    positions = known.get("seqpos_slice")
    if positions is not None and not (_is_list_of(positions, int | None) and 1 <= len(positions) <= 3):
        raise ValueError(f"{path}: seqpos_slice is {positions!r}; it must be a list of start, stop and step, or null")
    norm = known.get("max_activation_norm")
    if norm is not None and (isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf):
        raise ValueError(f"{path}: max_activation_norm is {norm!r}; it must be a positive number, or null")
    roles = known.get("chat_roles")
    if roles is not None and not _is_list_of(roles, str):
        raise ValueError(f"{path}: chat_roles is {roles!r}; it must be a list of roles, or null")
    widths = known.get("matryoshka_widths")
    if widths is not None and not _is_list_of(widths, int):
        raise ValueError(f"{path}: matryoshka_widths is {widths!r}; it must be a list of whole numbers, or null")
    return Provenance(
        model_name=read("model_name", str, "the name of a model"),
        model_note=read("model_note", str, "a text"),
        hook_name=hook_name,
        hook_name_out=None if hook_out == hook_name else hook_out,
        hook_names=hooks,
        hook_names_out=hooks_out,
        model_names=models,
        model_notes=notes,
        hook_head_index=head,
        context_size=context_size,
        prepend_bos=read("prepend_bos", bool, "true or false"),
        dataset_path=read("dataset_path", str, "the name of a data set"),
        exclude_special_tokens=special,
        seqpos_slice=positions,
        max_activation_norm=norm,
        max_activation_norms=norms,
        prefix=read("prefix", str, "a text"),
        chat_roles=roles,
        matryoshka_widths=widths,
        pair_hook_names=pair,
    )


def _flat(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of cfg.json under today's names and in one dictionary: SAELens before 6 had no `metadata`.

    Raises:
        ValueError: `metadata` is no object, a key has two different values, or the language model was opened in a way
            that changes its activations.
    """
    metadata = config.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata is {metadata!r}; it must be an object, or null")
    flat: dict[str, Any] = {}
    for part, where in ((config, ""), (metadata or {}, "metadata.")):
        _check_opening(part.get("model_from_pretrained_kwargs"), f"{path}: {where}model_from_pretrained_kwargs")
        for key, value in part.items():
            name = _OLDEST_NAMES.get(key, key)
            if value is None:
                continue
            if name in _SAID and flat.get(name, value) != value:
                raise ValueError(
                    f"{path}: {name} is {flat[name]!r}, but {where}{key} is {value!r}; correct the wrong one"
                )
            flat[name] = value
    return flat


def _check_opening(arguments: object, where: str) -> None:
    """Refuse activations of a language model whose weights were processed when it was opened (`fold_ln`)."""
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise ValueError(f"{where} is {arguments!r}; it must be an object, or null")
    if changing := {name: value for name, value in arguments.items() if value and name not in _HARMLESS_OPENING}:
        said = ", ".join(f"{name}={value!r}" for name, value in changing.items())
        raise ValueError(
            f"{where} has {said}: the autoencoder was made for the activations of a model that was opened so, and here "
            "it is opened as published; only an autoencoder of such activations can be evaluated"
        )


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
