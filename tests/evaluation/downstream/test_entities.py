import json
from pathlib import Path

import pytest

from fsae.evaluation.downstream.entities import ENTITY, packaged_entities, ravel_entities

VALUES = {
    "Paris": {"Country": "France", "Continent": "Europe", "Language": "French", "Latitude": "49"},
    "Lima": {"Country": "Peru", "Continent": "South America", "Language": "", "Latitude": "-12"},
}
PROMPTS = {
    "Country": ["%s is a city in the country of", "no entity here", "%s and %s"],
    "Continent": ["%s is on the continent of"],
    "Language": ["People in %s speak"],
    "Latitude": ["The latitude of %s is"],
}


def write(folder: Path, values: object = VALUES, prompts: object = PROMPTS, kind: str = "city") -> str:
    """Write RAVEL's four files of a kind."""
    for name, content in {
        "entity_attributes": values,
        "attribute_to_prompts": prompts,
        "entity_to_split": {"Paris": "train", "Lima": "test"},
        "prompt_to_split": {"%s is on the continent of": "train"},
    }.items():
        (folder / f"ravel_{kind}_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("kind", ["country", "city"])
def test_packaged_entities_have_a_value_for_every_template(kind: str):
    found = packaged_entities(kind)
    assert len(found.values) > 80
    for attribute, templates in found.templates.items():
        # A text before the entity, so that it is not the first token of a row.
        assert all(template.count(ENTITY) == 1 and not template.startswith(ENTITY) for template in templates)
        assert all(values[attribute] for values in found.values.values())


def test_cities_have_the_values_of_their_countries():
    found = packaged_entities("city").values
    assert found["São Paulo"] == {"country": "Brazil", "continent": "South America", "language": "Portuguese"}
    assert found["Kyoto"] == found["Tokyo"]
    assert packaged_entities("country").values["Japan"]["capital"] == "Tokyo"


def test_a_local_copy_of_ravels_files_is_read(tmp_path: Path):
    found = ravel_entities(write(tmp_path), "city")
    # SAEBench's three attributes; a value or a template that is empty or has not one entity is left out.
    assert found.templates == {name: PROMPTS[name][:1] for name in ("Country", "Continent", "Language")}
    assert found.values["Paris"] == {"Country": "France", "Continent": "Europe", "Language": "French"}
    assert found.values["Lima"] == {"Country": "Peru", "Continent": "South America"}


def test_all_attributes_of_another_kind_are_read(tmp_path: Path):
    found = ravel_entities(write(tmp_path, kind="harbour"), "harbour")
    assert found.templates.keys() == PROMPTS.keys()


def test_data_that_cannot_be_used_are_refused(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"has no ravel_verb_entity_attributes.json \(it has ravel_city_"):
        ravel_entities(str(tmp_path), "verb")
    with pytest.raises(ValueError, match="no folder on this machine"):
        ravel_entities("/no/such/folder", "city")
    with pytest.raises(ValueError, match="packaged entities of country and city"):
        packaged_entities("verb")
    with pytest.raises(ValueError, match="have no values with templates"):
        ravel_entities(write(tmp_path, values={"Paris": "France"}), "city")
    (tmp_path / "ravel_city_entity_attributes.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        ravel_entities(str(tmp_path), "city")


def test_a_data_set_on_the_hub_is_not_asked_for_without_a_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"eval\.ravel\.path: someone/ravel_prompts is not on this machine"):
        ravel_entities("someone/ravel_prompts", "city")
