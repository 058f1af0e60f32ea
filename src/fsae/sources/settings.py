"""Settings of a source: what it provides, and how it is opened for runs that share its stream."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.ranges import Ranged
from fsae.sources.documents import DatasetSettings
from fsae.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the runs of one stream ask of their source.

    Attributes:
        model, site, dataset: of a language model's activations; None if the source has no language model.
        training_samples: vectors that training takes; 0 if nothing is trained.
        held_out_samples: vectors that the evaluation takes.
        spliced: whether the evaluation puts reconstructions into the language model.
        only_store: whether the runs only fill the activation store.
        folder: of all activation stores.
        device: where batches are wanted, if no language model decides it.
        heartbeat: called after each forward pass; may raise to stop.
    """

    model: ModelSettings | None
    site: Site | None
    dataset: DatasetSettings | None
    training_samples: int
    held_out_samples: int
    spliced: bool
    only_store: bool
    folder: Path
    device: torch.device
    heartbeat: Callable[[], None]

    def place(self) -> tuple[ModelSettings, Site, DatasetSettings]:
        """Return model, site and data set; only for a source with a language model."""
        assert self.model is not None, "the source has no language model"
        assert self.site is not None
        assert self.dataset is not None
        return self.model, self.site, self.dataset


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Ranged, ABC, group="source"):
    """Settings that every source has.

    Attributes:
        provides: what evaluations and tasks may need of a source: "language_model" (activations of one, with its
            held-out text), "known_features" (a ground truth), "store" (an activation store).
    """

    provides: ClassVar[frozenset[str]] = frozenset()

    @property
    def known_width(self) -> int | None:
        """Width of the vectors, if it is known before they are read."""
        return None

    @abstractmethod
    def opened(self, demand: Demand) -> AbstractContextManager[Source]:
        """Return the source, to be entered.

        Raises:
            ValueError: files, a model or a site are missing.
            OSError: the disk has no room for what must be kept.
        """

    def stream_key(
        self,
        model: ModelSettings | None,
        site: Site | None,
        dataset: DatasetSettings | None,
        training_samples: int,
        batch_size: int,
    ) -> Hashable:
        """Return what runs must have in common to read the same batches from one open source."""
        return self, batch_size

    def identity(self) -> dict[str, str]:
        """Return what tells the source's own files from any others; nothing if it reads none."""
        return {}
