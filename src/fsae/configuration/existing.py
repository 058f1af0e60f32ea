"""What an existing autoencoder says of itself: heeded in the settings that evaluate it, or refused."""

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

from fsae.configuration.schema import RunSettings, Task
from fsae.export.saelens import CONFIG, Provenance, read_provenance
from fsae.language_models.identity import published_as
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.sources.documents import DatasetSettings
from fsae.sources.open_activations import ActivationSourceSettings
from fsae.sources.source import SourceSettings

log = logging.getLogger(__name__)


def heed_existing(settings: RunSettings) -> RunSettings:
    """The settings with what the autoencoder at `sae.path` says where they are null; those of another task as they are.

    What was set on the command line or in a YAML file counts, with a warning where the autoencoder says otherwise.

    Raises:
        ValueError: there is no autoencoder, it was made for another site, or it says what cannot be heeded.
    """
    if settings.task is not Task.eval:
        return settings
    folder = settings.existing()
    said = read_provenance(folder)
    if settings.model is None:
        if said.hook_name is not None:
            raise ValueError(
                f"{folder / CONFIG} says that it was made for {said.hook_name} of a language model, and this source "
                "has none; use source=activations"
            )
        return settings
    model, site, dataset = settings.place()
    _check_site(site, said, folder)
    _compare_model(model, said, folder)
    return replace(settings, dataset=_heeded(dataset, said, folder), source=_limited(settings.source, said, folder))


def _limited(source: SourceSettings, said: Provenance, folder: Path) -> SourceSettings:
    """The source with the norm beyond which the autoencoder's training left activations out."""
    limit = said.max_activation_norm
    if not isinstance(source, ActivationSourceSettings) or limit is None:
        return source
    if source.max_norm is None and source.max_norm_multiple is not None:
        _say(logging.INFO, f"source.max_norm is {limit:.6g}, as {folder / CONFIG} says")
        return replace(source, max_norm=limit)
    if source.max_norm != limit:
        _say(
            logging.WARNING,
            f"source.max_norm is {source.max_norm}, but {folder / CONFIG} says that activations beyond a norm of "
            f"{limit:.6g} were left out in its training",
        )
    return source


@cache
def _say(level: int, message: str) -> None:
    """Log it, once: settings are looked at before a run has a folder, and again in it."""
    log.log(level, message)


def _check_site(site: Site, said: Provenance, folder: Path) -> None:
    if said.hook_name is None:
        _say(logging.WARNING, f"{folder / CONFIG} does not say for which site it was made; it is evaluated at {site}")
        return
    try:
        made_for = Site.of_hook(said.hook_name)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    if made_for != site:
        raise ValueError(
            f"the autoencoder in {folder} was made for {said.hook_name}, but site {site} is {site.hook_name}; set "
            f"site={made_for.name.value} site.layer={made_for.layer}, where it belongs"
        )


def _compare_model(model: ModelSettings, said: Provenance, folder: Path) -> None:
    """Warn where the autoencoder was made for another model, or for other weights of it."""
    if said.model_name is None:
        return
    name, note = published_as(model)
    # SAELens' releases leave out the owner, and write some names in small letters.
    known = {each.casefold() for each in (name, name.rpartition("/")[2], model.name)}
    if said.model_name.casefold() not in known:
        _say(
            logging.WARNING,
            f"{folder / CONFIG} says that it was made for the model {said.model_name}, and it is evaluated on "
            f"{name}: unless these are two names of one model its numbers mean little",
        )
    elif said.model_note != note:
        _say(
            logging.WARNING,
            f"{folder / CONFIG} says that it was made for {said.model_name} ({said.model_note or 'as published'}), and "
            f"it is evaluated on other weights of it ({note or 'as published'})",
        )


def _heeded(dataset: DatasetSettings, said: Provenance, folder: Path) -> DatasetSettings:
    path = folder / CONFIG
    # Token ids are taken as they are, as sae_lens takes them: whoever tokenised them put a BOS there, or did not.
    prepend_bos = said.prepend_bos if dataset.tokens_column is None else None
    wishes = {"context": said.context_size, "prepend_bos": prepend_bos, "prefix": said.prefix}
    if dataset.chat_column is not None:
        wishes["chat_roles"] = said.chat_roles
    for name, wanted in wishes.items():
        set_to = getattr(dataset, name)
        if wanted is not None and set_to is None:
            dataset = _replaced(dataset, path, **{name: wanted})
            _say(logging.INFO, f"dataset.{name} is {wanted!r}, as {path} says")
        elif wanted is not None and set_to != wanted:
            different = f"dataset.{name} is {set_to}, but {path} says {wanted}: it was not made for such rows"
            _say(logging.WARNING, different)
    start, stop = _positions(said.seqpos_slice or [None], dataset.tokens_per_row, path)
    if stop < dataset.tokens_per_row:
        raise ValueError(
            f"{path}: seqpos_slice is {said.seqpos_slice}, so that it knows the first {stop} positions alone; set "
            f"dataset.context={stop}"
        )
    if start > dataset.skip_positions:
        dataset = _replaced(dataset, path, skip_positions=start)
        _say(logging.INFO, f"dataset.skip_positions is {start}, as seqpos_slice in {path} says")
    ids = said.exclude_special_tokens if isinstance(said.exclude_special_tokens, list) else []
    if more := sorted(set(ids) - set(dataset.exclude_tokens)):
        dataset = _replaced(dataset, path, exclude_tokens=[*dataset.exclude_tokens, *more])
        _say(
            logging.INFO,
            f"tokens {', '.join(map(str, more))} are left out, as exclude_special_tokens in {path} says",
        )
    if said.exclude_special_tokens is True and not dataset.exclude_special_tokens:
        _say(logging.WARNING, f"dataset.exclude_special_tokens is false, but {path} says that they were left out")
    if said.exclude_special_tokens is False and dataset.exclude_special_tokens:
        _say(logging.INFO, f"dataset.exclude_special_tokens is true, but {path} says that they were trained on")
    return dataset


def _replaced(
    dataset: DatasetSettings, path: Path, **changes: int | bool | str | list[int] | list[str]
) -> DatasetSettings:
    try:
        return replace(dataset, **changes)
    except ValueError as error:
        raise ValueError(f"{path} asks for what cannot be: {error}") from None


def _positions(seqpos_slice: list[int | None], context: int, path: Path) -> tuple[int, int]:
    """The first position that counts, and the one after the last."""
    bounds = slice(*seqpos_slice)
    if bounds.step not in (None, 1):
        raise ValueError(f"{path}: seqpos_slice is {seqpos_slice}; a step other than 1 is not supported")
    start, stop, _ = bounds.indices(context)
    if start >= stop:
        raise ValueError(f"{path}: seqpos_slice is {seqpos_slice}, which is none of the {context} positions of a row")
    return start, stop
