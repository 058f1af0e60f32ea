"""A source set: the name under which Neuronpedia shows a dictionary, and facts about it."""

import os
import re
from dataclasses import dataclass, field

from fsae.language_models.sites import Site

# Neuronpedia's own account, under which SAEDashboard imports what names no other.
_DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
_LONGEST_DESCRIPTION = 128


def _creator_id() -> str:
    return os.environ.get("DEFAULT_CREATOR_ID") or _DEFAULT_CREATOR_ID


@dataclass(frozen=True, kw_only=True)
class SourceSet:
    """A source set of one layer.

    Attributes:
        model: Neuronpedia's id of the language model, such as "gpt2-small".
        name: of the set; lower-case letters, digits and single hyphens.
        site: where the vectors are read.
        written: where decoder rows are directions, if it is another site.
        creator: the name shown as the author.
        creator_id: the account in Neuronpedia's database; the environment's DEFAULT_CREATOR_ID, or Neuronpedia's own.
        description: one line.
        url: a page about the dictionary.
        dataset: the text in which the examples were found.
        hub_repo: the Hugging Face repository with the weights, if they are published.
        hub_folder: the folder in that repository.

    Raises:
        ValueError: Neuronpedia would refuse the name or the description.
    """

    model: str
    name: str
    site: Site
    written: Site | None = None
    creator: str = ""
    creator_id: str = field(default_factory=_creator_id)
    description: str = ""
    url: str | None = None
    dataset: str = ""
    hub_repo: str | None = None
    hub_folder: str | None = None

    def __post_init__(self):
        if (
            not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?|[0-9]", self.name)
            or "--" in self.name
            or self.name == "neurons"
        ):
            raise ValueError(
                f"the source set's name is {self.name!r}; Neuronpedia takes lower-case letters, digits and single "
                "hyphens, beginning with a letter and ending in a letter or a digit, and not 'neurons'; give one with "
                "--set NAME"
            )
        if len(self.description) > _LONGEST_DESCRIPTION:
            raise ValueError(
                f"the source set's description has {len(self.description)} characters; Neuronpedia takes "
                f"{_LONGEST_DESCRIPTION}; shorten it"
            )

    @property
    def layer(self) -> int:
        """The layer of the site."""
        return self.site.layer

    @property
    def source(self) -> str:
        """Neuronpedia's id of the dictionary."""
        return f"{self.layer}-{self.name}"


def set_name(text: str) -> str:
    """Return a name of a source set made of any text; empty if the text has no letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower())
    return re.sub(r"^[^a-z]+|-$", "", plain)
