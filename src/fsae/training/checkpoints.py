"""Checkpoints of a run: one file, replaced whole, so that a kill at any moment leaves a good one."""

from pathlib import Path
from typing import Any

import torch

from fsae.files import digest_of, replacing


class Checkpoints:
    """The latest state of a run in its folder.

    Args:
        folder: the run's `checkpoints/`.
        config: flattened settings that decide what is trained; kept in the file and compared on loading.
        data: what is behind those of the settings that name files: which weights, which text. Kept and compared, too.
    """

    def __init__(self, folder: Path, config: dict[str, str], data: dict[str, str]):
        self.path = folder / "latest.pt"
        self._config = config
        self._data = data

    @property
    def data_digest(self) -> str:
        """Eight hexadecimal digits that stand for the data."""
        return digest_of(self._data)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last checkpoint by this state.

        Raises:
            OSError: no space is left; the last checkpoint is untouched.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.path) as unfinished, unfinished.open("wb") as file:
                torch.save({"config": self._config, "data": self._data, "state": state}, file)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a write that failed into a RuntimeError; others are not the disk's.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(
                f"cannot write the checkpoint {self.path}: {reason}; the last one is untouched. Free space on that "
                "disk and start the same command again, it goes on from there"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none.

        Raises:
            ValueError: the file is damaged, was made under other settings or on other data.
        """
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            config, data, state = saved["config"], saved["data"], saved["state"]
        except Exception as error:
            reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise ValueError(
                f"the checkpoint {self.path} is damaged ({reason}); delete it to start this run from the beginning"
            ) from error
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
                f"{lines}\nput it back, or start anew: delete the checkpoint, or give the run another `name`"
            )
        return state
