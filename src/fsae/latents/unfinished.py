"""An unfinished pass: the surveys of the parts that are done, in a file from which another process continues."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fsae.files import replacing, share_as_folder
from fsae.latents.survey import Survey

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
# The name of the surveys of the process itself; it comes before those of workers.
_WHOLE = "survey"


class Unfinished:
    """The folder in which the surveys of a pass are kept until it is complete.

    Args:
        folder: deleted by `close`.
        key: what decides the surveys: weights, data and sizes. Surveys of another key are not read.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self._key = folder, key

    def save(self, surveys: Sequence[Survey], name: str = _WHOLE) -> None:
        """Replace the surveys under a name.

        Raises:
            OSError: no space is left; the earlier ones are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{number}/{key}": each.contiguous()
            for number, survey in enumerate(surveys)
            for key, each in survey.state().items()
        }
        path = self.folder / f"{name}{_SUFFIX}"
        with replacing(path) as file:
            save_file(tensors, file, {"key": self._key})
            share_as_folder(file)

    def load(self, surveys: Sequence[Survey], first: int = 0) -> None:
        """Merge what there is into new surveys; a damaged file, or one of another pass, is deleted.

        Args:
            surveys: empty ones.
            first: number of the first of them among those that were saved.
        """
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            try:
                with safe_open(path, "pt") as file:
                    found = (file.metadata() or {}).get("key")
                    tensors = {name: file.get_tensor(name) for name in file.keys()} if found == self._key else {}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                log.warning("%s is damaged (%s): the parts of the pass that it has are read again", path, error)
                tensors = {}
            if not tensors:
                path.unlink()
                continue
            for number, survey in enumerate(surveys, first):
                prefix = f"{number}/"
                state = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
                # A killed process may have left the file of a worker whose parts are in the other file too.
                if not set(state["parts"].tolist()) <= survey.parts:
                    survey.merge(state)

    def gather(self, surveys: Sequence[Survey]) -> None:
        """Read the surveys of all files into new ones, and put those of workers into the one file of the process."""
        self.load(surveys)
        of_workers = [path for path in self.folder.glob(f"*{_SUFFIX}") if path.stem != _WHOLE]
        if of_workers:
            self.save(surveys)
        for path in of_workers:
            path.unlink()

    def close(self) -> None:
        """Delete the folder: the pass is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
