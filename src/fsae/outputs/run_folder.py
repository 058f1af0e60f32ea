"""A run's folder: which file holds what."""

from dataclasses import dataclass
from pathlib import Path


def exported_in(path: Path) -> Path:
    """Return the folder of the autoencoder that a run exported; the path itself if it is no run's folder."""
    sae = RunFolder(path).sae
    return sae if sae.is_dir() else path


@dataclass(frozen=True)
class RunFolder:
    """The names in a run's folder, the same for every run and every launcher."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The command line's overrides, in Hydra's format."""
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
        """Values logged after the checkpoint that a run resumed from, which were then logged a second time: MLflow may
        have received the first values, so it gets no others."""
        return self.path / "metrics.dropped.jsonl"

    @property
    def results(self) -> Path:
        """The held-out evaluation: flat names to numbers."""
        return self.path / "results.json"

    @property
    def evaluations(self) -> Path:
        """A file for each evaluation: its settings, its numbers and what they mean."""
        return self.path / "evaluations"

    @property
    def sharing(self) -> Path:
        """For a population: `found_by`, the number of members that have each latent of each member; if the truth is
        known also `nearest_cosine`, the cosine of each latent to its nearest true feature."""
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
    def latents(self) -> Path:
        """The findings on every latent, and pages that show them (see `fsae.outputs.latent_store`)."""
        return self.path / "latents"

    @property
    def latent_stores(self) -> list[Path]:
        """The folders in `latents` that hold findings: itself, or one for each member of a population, in order."""
        members = [path for path in self.latents.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
        return sorted(members, key=lambda path: int(path.name)) or [self.latents]

    @property
    def latent_pages(self) -> list[Path]:
        """The pages that are to be opened: one, or one for each member of a population; none if there are none."""
        return [page for folder in self.latent_stores if (page := folder / "index.html").is_file()]

    @property
    def plots(self) -> Path:
        """Pictures drawn at the run's end."""
        return self.path / "plots"

    @property
    def log(self) -> Path:
        """The run's log."""
        return self.path / "run.log"

    @property
    def tracking(self) -> Path:
        """The name and the tracking server under which the run is logged (see `fsae.tracking.mlflow_upload`)."""
        return self.path / "tracking.json"
