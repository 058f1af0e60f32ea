"""A run's folder: which file holds what."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The names in a run's folder, the same for every run and whatever launched it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """What the command line asked for, as Hydra keeps it."""
        return self.path / "overrides.yaml"

    @property
    def status(self) -> Path:
        """State, times and reason of failure (see `fsae.outputs.status`)."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """Every logged value (see `fsae.outputs.metric_log`)."""
        return self.path / "metrics.jsonl"

    @property
    def dropped(self) -> Path:
        """Values that were logged after the checkpoint that a run went on from, and were logged again: MLflow may have
        the first ones, so it is given no others."""
        return self.path / "metrics.dropped.jsonl"

    @property
    def results(self) -> Path:
        """The held-out evaluation: flat names to numbers."""
        return self.path / "results.json"

    @property
    def sharing(self) -> Path:
        """Of a population: `found_by`, for each latent of each member how many have it; and where the truth is known
        `nearest_cosine`, that of each latent and the nearest true feature."""
        return self.path / "sharing.json"

    @property
    def checkpoints(self) -> Path:
        """Training states to resume from."""
        return self.path / "checkpoints"

    @property
    def sae(self) -> Path:
        """The exported autoencoder."""
        return self.path / "sae"

    @property
    def plots(self) -> Path:
        """Pictures made at the run's end."""
        return self.path / "plots"

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.path / "run.log"

    @property
    def tracking(self) -> Path:
        """Under which names the run is logged, and where (see `fsae.tracking.mlflow_upload`)."""
        return self.path / "tracking.json"
