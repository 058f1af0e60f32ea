"""Entities with attributes, and templates of prompts that ask for them: countries and cities, or RAVEL's files."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.language_models.hub import dataset_file, is_hub_name

# Countries, with the names by which a language model may know their capitals, continents and languages.
_GAZETTEER = Path(__file__).with_name("gazetteer.csv")
# The place of the entity in a template.
ENTITY = "%s"
# The attributes that SAEBench asks for; of other entities in RAVEL's files all attributes are.
_CHOSEN = {
    "city": ["Country", "Continent", "Language"],
    "nobel_prize_winner": ["Country of Birth", "Field", "Gender"],
}
# A text before the entity in each template: a model's first token often is an attention sink.
_COUNTRY = {
    "capital": [
        "We flew to %s and landed in its capital,",
        "The country of %s has its capital in",
        "The capital city of %s is called",
    ],
    "continent": [
        "The country of %s is on the continent of",
        "The country of %s lies on the continent of",
        "The country called %s is part of the continent of",
    ],
    "language": [
        "People in %s speak",
        "The official language of %s is",
        "The people of %s speak a language called",
    ],
}
_CITY = {
    "country": [
        "The city of %s is in the country of",
        "The city called %s is a city in the country of",
        "The town of %s is in the country of",
    ],
    "continent": [
        "The city of %s is on the continent of",
        "The city of %s lies on the continent of",
        "The town of %s is on the continent of",
    ],
    "language": ["People in %s speak", "Most people in %s speak", "The main language in %s is"],
}


@dataclass(frozen=True)
class Entities:
    """Entities of one kind.

    Attributes:
        values: by entity, the value of each of its attributes.
        templates: by attribute, texts with one "%s" for the entity, after which the value comes.
    """

    values: Mapping[str, Mapping[str, str]]
    templates: Mapping[str, Sequence[str]]


def packaged_entities(kind: str) -> Entities:
    """Return the packaged countries or cities.

    Raises:
        ValueError: there are none of this kind.
    """
    if kind not in ("country", "city"):
        raise ValueError(
            f"eval.ravel.entity is {kind!r}, and there are packaged entities of country and city; choose one of them, "
            "or name a folder or a data set with eval.ravel.path"
        )
    with _GAZETTEER.open(encoding="utf-8", newline="") as file:
        countries = list(csv.DictReader(file))
    if kind == "country":
        return Entities({row["country"]: {name: row[name] for name in _COUNTRY} for row in countries}, _COUNTRY)
    cities = {
        city: {name: row[name] for name in _CITY}
        for row in countries
        for city in (row["capital"], *filter(None, row["cities"].split(";")))
    }
    return Entities(cities, _CITY)


def ravel_entities(path: str, kind: str, revision: str | None = None) -> Entities:
    """Return entities in RAVEL's files (Huang et al., arXiv 2402.17700), as in adamkarvonen/ravel_prompts.

    `ravel_<kind>_entity_attributes.json` has the values and `ravel_<kind>_attribute_to_prompts.json` the templates. The
    two other files of a kind divide entities and templates into parts; here a seed does this.

    Args:
        path: a folder, or the name of a data set on the hub.
        kind: of the entities, as in the files' names.
        revision: of the data set on the hub.

    Raises:
        ValueError: there is no such folder or data set, a file is missing, or it does not have this layout.
    """
    values, templates = (
        _content(path, f"ravel_{kind}_{name}.json", revision) for name in ("entity_attributes", "attribute_to_prompts")
    )
    chosen = [name for name in _CHOSEN.get(kind, templates) if name in templates]
    found = Entities(
        {
            entity: {name: str(own[name]) for name in chosen if own.get(name)}
            for entity, own in values.items()
            if isinstance(own, dict)
        },
        {
            name: [template for template in templates[name] if str(template).count(ENTITY) == 1]
            for name in chosen
            if isinstance(templates[name], list)
        },
    )
    if not any(found.values.values()) or not any(found.templates.values()):
        raise ValueError(
            f"eval.ravel.path: the files of {kind} in {path} have no values with templates: "
            "entity_attributes must have a value per entity and attribute, and attribute_to_prompts a list of texts "
            "with %s per attribute"
        )
    return found


def _content(path: str, name: str, revision: str | None) -> dict[str, Any]:
    folder = Path(path).expanduser()
    if folder.is_dir():
        file = folder / name
        if not file.is_file():
            there = sorted(each.name for each in folder.glob("ravel_*_entity_attributes.json"))
            raise ValueError(
                f"eval.ravel.path: the folder {folder} has no {name} (it has {', '.join(there) or 'no such files'}); "
                "correct eval.ravel.entity or the path"
            )
    elif is_hub_name(path):
        file = dataset_file(path, name, revision=revision, setting="eval.ravel.path")
    else:
        raise ValueError(
            f"eval.ravel.path: {path!r} is no folder on this machine (seen from {Path.cwd()}) and no hub name "
            "(owner/name); correct the path"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ValueError(f"eval.ravel.path: {file} cannot be read ({error}); download it again") from None
    return content
