"""A model card: the README of a repository on the Hugging Face hub, made from a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader

from fsae.configuration.resolvers import choice_names
from fsae.configuration.schema import RunSettings
from fsae.credentials import concealed
from fsae.export.between import kind_of, saelens_form
from fsae.export.provenance import Provenance
from fsae.language_models.hub import hub_endpoint
from fsae.language_models.identity import hub_name
from fsae.language_models.sites import Site
from fsae.naming import last_part
from fsae.outputs.results import MEASURED, Better, Shown, in_order, meanings_in
from fsae.sources.layout import Sites
from fsae.surface.dictionary import Dictionary

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")
_ARROWS = {Better.more: "↑", Better.less: "↓", Better.neither: ""}
# Settings that say where a run was made, and nothing about the dictionary.
_LOCAL = ("task", "name", "paths", "tracking", "sae", "search")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts that a card shows.

    Attributes:
        repo: the repository's name on the hub.
        folder: the dictionary's folder in the repository.
        dictionaries: the dictionary, or the members of a population.
        settings: of the run.
        written_settings: the content of the run's config.yaml.
        results: the content of the run's results.json.
        licence: the licence's identifier on the hub, or None.
        pictures: captions of the pictures, by their path from the card.
        pages: the folder of the latents' pages in the repository, or None.
        version: of fsae.
    """

    repo: str
    folder: str
    dictionaries: Sequence[Dictionary]
    settings: RunSettings
    written_settings: Mapping[str, Any]
    results: Mapping[str, Any]
    licence: str | None
    pictures: Mapping[str, str]
    pages: str | None
    version: str


def model_card(facts: CardFacts) -> str:
    """Return the card in Markdown, with its metadata as YAML at the top."""
    first = facts.dictionaries[0]
    kept = {name: _without_folders(value) for name, value in facts.written_settings.items() if name not in _LOCAL}
    text = _TEMPLATES.get_template("model_card.md.jinja").render(
        metadata=_metadata(facts),
        title=last_part(facts.repo),
        summary=_summary(facts),
        repo=facts.repo,
        folder=facts.folder,
        members=len(facts.dictionaries),
        d_in=first.d_in,
        d_sae=first.d_sae,
        in_sae_lens=saelens_form(first.autoencoder).known,
        data=_data(facts.settings, [each.provenance for each in facts.dictionaries]),
        training=_training(facts.settings, first),
        pictures=facts.pictures,
        numbers=_numbers(facts.results),
        pages=facts.pages,
        pages_link=f"{hub_endpoint()}/{facts.repo}/tree/main/{facts.pages}",
        settings=yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip(),
        version=facts.version,
    )
    return concealed(text)


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    settings, autoencoder = facts.settings, facts.dictionaries[0].autoencoder
    known, kind = saelens_form(autoencoder).known, kind_of(autoencoder).replace(" ", "-")
    return ModelCardData(
        library_name="saelens" if known else "fsae",
        license=facts.licence,
        base_model=None if settings.model is None else hub_name(settings.model),
        datasets=None if settings.dataset is None else settings.dataset.hub_name,
        tags=["fsae", kind, "mechanistic-interpretability", _trained_as(settings)],
    ).to_yaml()


def _trained_as(settings: RunSettings) -> str:
    """Return the architecture as it was trained; SAELens' format has no name for some."""
    return choice_names()[type(settings.arch)]


def _source(settings: RunSettings) -> str:
    return choice_names()[type(settings.source)]


def _without_folders(group: Any) -> Any:
    """Return the settings of a group with the last part of a path in place of a folder of this machine."""
    if not isinstance(group, Mapping):
        return group
    paths = {
        name: last_part(value)
        for name, value in group.items()
        if isinstance(value, str) and value.startswith(("/", "~/", "./", "../"))
    }
    return {**group, **paths}


def _summary(facts: CardFacts) -> str:
    first, count = facts.dictionaries[0], len(facts.dictionaries)
    kind = kind_of(first.autoencoder)
    what = f"{count} {kind}s" if count > 1 else f"A {kind}"
    if first.site is None:
        of = f"the source `{_source(facts.settings)}`"
    elif first.autoencoder.ends.plain:
        # The members of a pair have sites of their own.
        sites = dict.fromkeys(each.site for each in facts.dictionaries if each.site is not None)
        places = " and ".join(f"{site.name.value} of layer {site.layer}" for site in sites)
        of = f"{places} of {first.provenance.model_name}"
    else:
        hooks = (first.provenance.hooks_in, first.provenance.hooks_out)
        models = " and ".join(first.provenance.model_names or [str(first.provenance.model_name)])
        of = f"{Sites(*(tuple(map(Site.of_hook, names)) for names in hooks))} of {models}"
    return f"{what} (`{_trained_as(facts.settings)}`, {first.d_sae:,} latents) of {of}, trained with fsae."


def _data(settings: RunSettings, members: Sequence[Provenance]) -> dict[str, Any]:
    """Return the facts about the vectors, by name; a path of the machine is its last part alone."""
    if settings.model is None or settings.dataset is None:
        return {"source": f"`{_source(settings)}`"}
    provenance, skipped, other = members[0], settings.dataset.skip_positions, settings.layout.model
    sites = dict.fromkeys(site for each in members for site in each.hooks_in)
    left_out = {
        "special tokens": provenance.exclude_special_tokens,
        "the first position of a row" if skipped == 1 else f"the first {skipped} positions of a row": skipped,
        f"vectors of a norm above {provenance.max_activation_norm or 0:.4g}": provenance.max_activation_norm,
    }
    found = {
        "language model": hub_name(settings.model) or settings.model.name,
        "difference from that model": provenance.model_note,
        "second language model": "" if other is None else hub_name(other) or other.name,
        "difference from the second model": (provenance.model_notes or [None])[-1],
        "site": _code(sites),
        "written site": "" if provenance.hooks_out == provenance.hooks_in else _code(provenance.hooks_out),
        "text": settings.dataset.hub_name or settings.dataset.name,
        "tokens per row": provenance.context_size,
        "first token of a row": "the model's first token" if provenance.prepend_bos else "that of the text",
        "left out": ", ".join(name for name, holds in left_out.items() if holds) or "nothing",
        "prefix of a row": provenance.prefix,
        "roles of a chat": ", ".join(provenance.chat_roles or []),
    }
    return {name: value for name, value in found.items() if value}


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _training(settings: RunSettings, dictionary: Dictionary) -> dict[str, Any]:
    terms = (f"`{name}` ({choice_names()[type(term)]}) {term.weight:g}" for name, term in settings.loss.items())
    trained, written = _trained_as(settings), dictionary.architecture
    return {
        "architecture": f"`{trained}`" if trained == written else f"`{trained}`, written as `{written}`",
        "latents": f"{dictionary.d_sae:,}",
        "width of the vectors": f"{dictionary.d_in:,}",
        "weights of the objective's terms": ", ".join(terms),
        "samples": f"{settings.trainer.samples:,}",
        "samples per batch": f"{settings.trainer.batch_size:,}",
        "seed": settings.seed,
    }


def _numbers(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table of numbers, in the order of all tables."""
    meanings = meanings_in(results)
    return [
        {
            "name": name.removeprefix(MEASURED),
            "value": f"{results[name]:.4g}",
            "arrow": _ARROWS[meanings[name].better],
            "meaning": str(meanings[name]),
        }
        for name in in_order(meanings)
        if meanings[name].shown is not Shown.files and isinstance(results.get(name), int | float)
    ]
