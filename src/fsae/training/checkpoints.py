"""Checkpoints of a run: one file, replaced as a whole, so that a kill at any moment leaves a good one."""

from pathlib import Path
from typing import Any

import torch

from fsae.files import digest_of, replacing

# Raise it whenever the contents of the state change: then a checkpoint of another version is refused with a sentence.
FORMAT = 2


class Checkpoints:
    """The latest state of a run in its folder.

    Args:
        folder: the run's `checkpoints/`.
        config: flattened settings that decide the numbers; saved with the state and compared on loading.
        data: identities of the files that settings name, such as weights and text; saved and compared, too.
    """

    def __init__(self, folder: Path, config: dict[str, str], data: dict[str, str]):
        self.path = folder / "latest.pt"
        self._config = config
        self._data = data

    @property
    def data_digest(self) -> str:
        """The identity of the data, as eight hexadecimal digits."""
        return digest_of(self._data)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last checkpoint by this state.

        Raises:
            OSError: no space is left; the last checkpoint is untouched.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.path) as unfinished, unfinished.open("wb") as file:
                torch.save({"format": FORMAT, "config": self._config, "data": self._data, "state": state}, file)
        except (OSError, RuntimeError) as error:
            # The zip writer of torch raises a RuntimeError for a failed write; other RuntimeErrors have other causes.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(
                f"cannot write the checkpoint {self.path}: {reason}; the last one is untouched. Free space on that "
                "disk and start the same command again; it resumes from the last one"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is no checkpoint.

        Raises:
            ValueError: the file is damaged, has another format, or belongs to other settings or other data.
        """
        if not self.path.exists():
            return None
        config, data, state = self._parts()
        keys = config.keys() | self._config.keys()
        differing = sorted(key for key in keys if config.get(key) != self._config.get(key))
        if differing:
            lines = "\n".join(
                f"  {key}: {config.get(key, '(absent)')} in the checkpoint, {self._config.get(key, '(absent)')} now"
                for key in differing
            )
            raise ValueError(
                f"the checkpoint {self.path} belongs to a run with other settings:\n{lines}\n"
                "use the settings it was made with, or another run folder"
            )
        changed = sorted(key for key in data.keys() | self._data.keys() if data.get(key) != self._data.get(key))
        if changed:
            lines = "\n".join(
                f"  {key}: {data.get(key, '(absent)')} in the checkpoint, {self._data.get(key, '(absent)')} now"
                for key in changed
            )
            raise ValueError(
                f"the checkpoint {self.path} was trained on other data; what these settings name has changed since:\n"
                f"{lines}\nput it back; or start again: delete the checkpoint, or give the run another `name`"
            )
        return state

    def _parts(self) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
        """Return the config, the data and the state in the file."""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            # The first format had no number, and no data.
            found = saved["format"] if "format" in saved or "config" not in saved else 1
            if found == FORMAT:
                return saved["config"], saved["data"], saved["state"]
        except Exception as error:
            reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise ValueError(
                f"the checkpoint {self.path} is damaged ({reason}); delete it to start this run from the beginning"
            ) from error
        # Another format may have other parts.
        raise ValueError(
            f"the checkpoint {self.path} has format {found}, and this version of fsae reads format {FORMAT}; "
            "finish the run with the version that began it, or delete the checkpoint to start from the beginning"
        )
