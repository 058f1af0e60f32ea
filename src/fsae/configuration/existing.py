"""Provenance of an existing autoencoder: applied to the settings that evaluate it, or refused."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from fsae.configuration.schema import RunSettings
from fsae.export.dictionary_files import read_provenance
from fsae.export.provenance import Provenance
from fsae.export.saelens import CONFIG
from fsae.language_models.identity import published_as
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.sources.documents import DatasetSettings
from fsae.sources.layout import Sites
from fsae.sources.source import SourceSettings

log = logging.getLogger(__name__)


def apply_provenance(settings: RunSettings) -> RunSettings:
    """Fill settings that are null from the provenance of the autoencoder at `sae.path`; change nothing without one.

    Settings from the command line or a YAML file take precedence, with a warning if the provenance differs.

    Raises:
        ValueError: there is no autoencoder, it was made for another site, or its provenance cannot be applied.
    """
    if settings.sae.path is None:
        return settings
    folder = settings.existing()
    provenance = read_provenance(folder)
    if settings.model is None:
        if provenance.hook_name is not None:
            raise ValueError(
                f"by {_described(folder)} it was made for {provenance.hook_name} of a language model, and this source "
                "has none; use source=activations"
            )
        return settings
    model, site, dataset = settings.place()
    sites = settings.layout.sites(site)
    _check_sites(sites, provenance, folder)
    for each, name, note in zip(sites.input, *_models_of(provenance, len(sites.input)), strict=True):
        _compare_model(each.model_in(model), name, note, folder)
    return replace(
        settings,
        dataset=_with_its_rows(dataset, provenance, folder),
        source=with_its_norm_limit(settings.source, provenance, folder),
    )


def with_its_norm_limit(source: SourceSettings, provenance: Provenance, folder: Path) -> SourceSettings:
    """Return the source with the norm limit of the autoencoder's training, beyond which activations were left out."""
    if provenance.max_activation_norms is not None:
        return source.with_norm_limits(provenance.max_activation_norms)
    limit = provenance.max_activation_norm
    if limit is None:
        return source
    limited, other = source.with_norm_limit(limit)
    if other is not None:
        _log_once(
            logging.WARNING,
            f"source.max_norm is {other}, but by {_described(folder)} its training left out activations beyond a norm "
            f"of {limit:.6g}",
        )
    elif limited is not source:
        _log_once(logging.INFO, f"source.max_norm is {limit:.6g}, from {_described(folder)}")
    return limited


def _described(folder: Path) -> Path:
    """Return the file or folder that says what a dictionary was trained on, for messages."""
    return folder / CONFIG if (folder / CONFIG).is_file() else folder


@cache
def _log_once(level: int, message: str) -> None:
    """Log the message once: settings are checked before a run has a folder, and again inside it."""
    log.log(level, message)


def _check_sites(sites: Sites, provenance: Provenance, folder: Path) -> None:
    site = sites.input[0]
    if provenance.hook_name is None:
        _log_once(
            logging.WARNING, f"{_described(folder)} does not name the site; the autoencoder is evaluated at {site}"
        )
        return
    try:
        made_for = Site.of_hook(provenance.hook_name, provenance.hook_head_index, provenance.writes_elsewhere)
        read = tuple(Site.of_hook(hook, None, provenance.writes_elsewhere) for hook in provenance.hook_names or [])
        read = read or (made_for,)
        hooks_out = provenance.hook_names_out or ([provenance.hook_name_out] if provenance.hook_name_out else [])
        written = tuple(map(Site.of_hook, hooks_out)) or read
    except ValueError as error:
        raise ValueError(f"{_described(folder)}: {error}") from None
    own = tuple(tuple(each.within for each in end) for end in sites)
    if own != (read, written) and (not sites.plain or read != written or len(read) > 1):
        choice, models = "its layout and its site, as in layout=transcoder site.layer=5", provenance.model_names
        if models is not None:
            choice = f"its two models, {models[0]} and {models[-1]}, as in 'model=[gpt2,custom]'"
        raise ValueError(
            f"the dictionary in {folder} is for {Sites(read, written)}, but the settings are for {sites}; choose "
            f"{choice}"
        )
    if made_for != site:
        of_head = "" if made_for.head is None else f", head {made_for.head} alone"
        raise ValueError(
            f"the autoencoder in {folder} was made for {provenance.hook_name}{of_head}, but site {site} is "
            f"{site.hook_name}; set {' '.join(made_for.overrides)}"
        )


def _models_of(provenance: Provenance, sites: int) -> tuple[Sequence[str | None], Sequence[str | None]]:
    """Return the name and the note of the model of each site that a dictionary reads."""
    names, notes = provenance.model_names, provenance.model_notes
    return names or [provenance.model_name] * sites, notes or [provenance.model_note] * sites


def _compare_model(model: ModelSettings, made_for: str | None, made_for_note: str | None, folder: Path) -> None:
    """Warn if the autoencoder was made for another model, or for other weights of the same model."""
    if made_for is None:
        return
    name, note = published_as(model)
    # SAELens' releases omit the owner, and write some names in small letters.
    known = {each.casefold() for each in (name, name.rpartition("/")[2], model.name)}
    if made_for.casefold() not in known:
        _log_once(
            logging.WARNING,
            f"by {_described(folder)} it was made for the model {made_for}, and it is evaluated on "
            f"{name}: unless these are two names of one model its numbers mean little",
        )
    elif made_for_note != note:
        _log_once(
            logging.WARNING,
            f"by {_described(folder)} it was made for {made_for} ({made_for_note or 'as published'}), and it is "
            f"evaluated on other weights of it ({note or 'as published'})",
        )


def _with_its_rows(dataset: DatasetSettings, provenance: Provenance, folder: Path) -> DatasetSettings:
    path = _described(folder)
    # Token ids of a data set are used unchanged, as in sae_lens: a BOS in them depends on who tokenised them.
    prepend_bos = provenance.prepend_bos if dataset.tokens_column is None else None
    wishes = {"context": provenance.context_size, "prepend_bos": prepend_bos, "prefix": provenance.prefix}
    if dataset.chat_column is not None:
        wishes["chat_roles"] = provenance.chat_roles
    for name, wanted in wishes.items():
        set_to = getattr(dataset, name)
        if wanted is not None and set_to is None:
            dataset = _replaced(dataset, path, **{name: wanted})
            _log_once(logging.INFO, f"dataset.{name} is {wanted!r}, from {path}")
        elif wanted is not None and set_to != wanted:
            different = f"dataset.{name} is {set_to}, but {wanted} in {path}: it was not made for such rows"
            _log_once(logging.WARNING, different)
    start, stop = _positions(provenance.seqpos_slice or [None], dataset.tokens_per_row, path)
    if stop < dataset.tokens_per_row:
        raise ValueError(
            f"{path}: seqpos_slice is {provenance.seqpos_slice}, so the autoencoder was trained on the first {stop} "
            f"positions alone; set dataset.context={stop}"
        )
    if start > dataset.skip_positions:
        dataset = _replaced(dataset, path, skip_positions=start)
        _log_once(logging.INFO, f"dataset.skip_positions is {start}, from seqpos_slice in {path}")
    ids = provenance.exclude_special_tokens if isinstance(provenance.exclude_special_tokens, list) else []
    if more := sorted(set(ids) - set(dataset.exclude_tokens)):
        dataset = _replaced(dataset, path, exclude_tokens=[*dataset.exclude_tokens, *more])
        _log_once(
            logging.INFO,
            f"tokens {', '.join(map(str, more))} are left out, from exclude_special_tokens in {path}",
        )
    if provenance.exclude_special_tokens is True and not dataset.exclude_special_tokens:
        _log_once(logging.WARNING, f"dataset.exclude_special_tokens is false, but by {path} they were left out")
    if provenance.exclude_special_tokens is False and dataset.exclude_special_tokens:
        _log_once(logging.INFO, f"dataset.exclude_special_tokens is true, but by {path} they were trained on")
    return dataset


def _replaced(
    dataset: DatasetSettings, path: Path, **changes: int | bool | str | list[int] | list[str]
) -> DatasetSettings:
    try:
        return replace(dataset, **changes)
    except ValueError as error:
        raise ValueError(f"{path} requires settings that are refused: {error}") from None


def _positions(seqpos_slice: list[int | None], context: int, path: Path) -> tuple[int, int]:
    """Return the first position that counts, and the position after the last one."""
    bounds = slice(*seqpos_slice)
    if bounds.step not in (None, 1):
        raise ValueError(f"{path}: seqpos_slice is {seqpos_slice}; a step other than 1 is not supported")
    start, stop, _ = bounds.indices(context)
    if start >= stop:
        raise ValueError(f"{path}: seqpos_slice is {seqpos_slice}, which selects none of the {context} positions")
    return start, stop
