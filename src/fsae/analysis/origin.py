"""The origin of a dictionary: its run, as the pages about its latents show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fsae.analysis.runs import COMMIT_TAG
from fsae.outputs.run_folder import RunFolder
from fsae.tracking.mlflow_upload import RunDescription, read_description
from fsae.tracking.tags import DIRTY_TAG


@dataclass(frozen=True)
class Origin:
    """The origin of a dictionary.

    Attributes:
        title: the dictionary's name.
        facts: about the run that trained it, by name.
        path: that `fsae.load` and the commands open, from the folder that has the outputs folder; "" if no folder has
            the dictionary.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def of(cls, run: Path, member: int | None = None) -> Self:
        """Return the origin of a run's dictionary.

        Args:
            run: the run's folder.
            member: of a population; None for a run with one dictionary.

        Raises:
            ValueError: the description of the run is damaged.
        """
        title = run.name if member is None else f"{run.name}, member {member}"
        described = read_description(run) if RunFolder(run).tracking.is_file() else None
        path = _path(run.absolute(), described)
        return cls(title, {"run": run.name} | _facts(described), path if member is None else f"{path}/sae/{member}")


def _path(run: Path, described: RunDescription | None) -> str:
    """Return a path without the folders above the outputs folder: pages may be published."""
    if described is None:
        return run.name
    outputs = Path(described.outputs)
    # An evaluated dictionary lies elsewhere.
    evaluated = described.params["task"] == "eval"
    folder = Path(described.params["sae.path"]).expanduser().absolute() if evaluated else run
    within = folder.is_relative_to(outputs)
    return Path(outputs.name, folder.relative_to(outputs)).as_posix() if within else folder.name


def _facts(described: RunDescription | None) -> dict[str, str]:
    if described is None:
        return {}
    settings, facts = described.params, {}
    if settings["task"] == "train":
        data = settings.get("dataset.name", settings["source"])
        facts["trained on"] = f"{settings['trainer.samples']} samples of {data}, with seed {settings['seed']}"
    if commit := described.tags.get(COMMIT_TAG):
        facts["code"] = f"commit {commit}{', with changes' if described.tags.get(DIRTY_TAG) == 'true' else ''}"
    return facts
