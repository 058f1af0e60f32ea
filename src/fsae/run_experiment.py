"""One run, from settings to results: builds the parts in order, and owns success and failure."""

import errno
import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fsae.analysis.run_plots import plot_firing, plot_training
from fsae.autoencoders.base import Autoencoder
from fsae.autoencoders.initialisation import initialise_from
from fsae.configuration.refusal import record_refusal, tell
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.results import flat_results, results_table
from fsae.evaluation.sparsity import density_histogram
from fsae.evaluation.splice import evaluate_splice
from fsae.evaluation.vectors import evaluate_vectors
from fsae.export.folding import fold
from fsae.export.saelens import Provenance, load_saelens, read_provenance, save_saelens
from fsae.language_models.transformer_lens_model import TransformerLensModel, open_language_model
from fsae.losses.fisher import Fisher
from fsae.losses.objective import Objective
from fsae.sources.activations import ActivationSource
from fsae.sources.documents import Part, open_documents
from fsae.sources.tokens import PackedTokens
from fsae.tracking.mlflow_upload import describe_run, read_description
from fsae.tracking.run_folder import RunFolder, write_json
from fsae.tracking.status import Failure, RunState, mark
from fsae.tracking.store import resolve_uri, ui_command
from fsae.tracking.tags import run_tags
from fsae.tracking.tracker import Tracker
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import TrainingRun
from fsae.training.member import Member
from fsae.training.scaling import scale_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's settings came from, for its records.

    Attributes:
        folder: the run's own.
        config_yaml: the resolved config.
        overrides: what the command line changed.
        deciding: flattened settings that decide the numbers.
        flat: all settings, flattened.
    """

    folder: Path
    config_yaml: str
    overrides: Sequence[str]
    deciding: dict[str, str]
    flat: dict[str, str]


def run_experiment(settings: RunSettings, origin: Origin) -> dict[str, Any]:
    """Run it; everything it makes is in `origin.folder`.

    Returns:
        The evaluation's numbers, by name.

    Raises:
        Interrupted: a signal came; the state is saved and the same command goes on.
        Exception: whatever ended it; `status.json` holds it and earlier results stand.
    """
    folder = RunFolder(origin.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / "run.lock")
    checkpoints = Checkpoints(folder.checkpoints, origin.deciding)
    # Until the folder is known to be ours nothing is written there: a refusal leaves what it holds as it is.
    try:
        lock.acquire(timeout=0)
        state = checkpoints.load()
    except (Timeout, ValueError) as error:
        lock.release()
        busy = f"another process is running in {folder.path}; wait for it, or change a setting or `name`"
        refused = ValueError(busy) if isinstance(error, Timeout) else error
        record_refusal(refused, folder.path, Path(settings.paths.outputs))
        raise refused from None
    # The stack is closed after the outcome is written: tracking sends it to MLflow last of all.
    with lock, ExitStack() as stack, _outcome(folder.path), Interruption() as interruption:
        folder.config.write_text(origin.config_yaml)
        folder.overrides.write_text("".join(f"- {json.dumps(override)}\n" for override in origin.overrides))
        tracker = stack.enter_context(_tracker(settings, origin, folder, state))
        run = _Run(settings, origin, folder, tracker, checkpoints, state, interruption)
        return run.train() if settings.task is Task.train else run.evaluate_existing()


@contextmanager
def _outcome(folder: Path) -> Iterator[None]:
    """Keep `status.json` true: running now, and how it ended afterwards."""
    mark(folder, RunState.running)
    try:
        yield
    except Interrupted as interrupted:
        mark(folder, RunState.interrupted, Failure(kind="Interrupted", message=str(interrupted)))
        raise
    except BaseException as error:
        told = _with_place(error, folder)
        mark(folder, RunState.failed, Failure(kind=type(error).__name__, message=str(told)))
        # Now, not after tracking had its time to say goodbye.
        if isinstance(told, Exception):
            tell(told, folder)
        if told is error:
            raise
        raise told from error
    mark(folder, RunState.finished)


def _with_place(error: BaseException, folder: Path) -> BaseException:
    """The error; one for people to mend where a disk was full, which the system's own message does not place."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return error
    return OSError(f"no space left for {folder}; free some and start the same command again, it goes on from there")


def _tracker(settings: RunSettings, origin: Origin, folder: RunFolder, state: dict[str, Any] | None) -> Tracker:
    outputs = Path(settings.paths.outputs)
    uri = resolve_uri(settings.tracking.uri, outputs)
    # Also without MLflow, so that the run can be sent there later.
    describe_run(
        folder.path,
        uri=uri,
        outputs=outputs,
        experiment=settings.tracking.experiment,
        run_name=folder.path.name,
        params=origin.flat,
        tags=run_tags(origin.overrides),
        # A resumed run goes on in the same MLflow run; one that starts over is another, with values of its own.
        uid=read_description(folder.path).uid if state is not None else uuid.uuid4().hex,
    )
    return Tracker(
        folder.path,
        uri=uri if settings.tracking.mlflow else None,
        flush_seconds=settings.tracking.flush_seconds,
        position=state["metrics_position"] if state is not None else 0,
    )


@dataclass
class _Run:
    """The parts of one run while it is under way."""

    settings: RunSettings
    origin: Origin
    folder: RunFolder
    tracker: Tracker
    checkpoints: Checkpoints
    state: dict[str, Any] | None
    interruption: Interruption

    def train(self) -> dict[str, Any]:
        """Train, evaluate, export, plot."""
        settings = self.settings
        model, source = self._open_source()
        training = self._training(model, source)
        if training.step > 0:
            log.info("going on at step %d of %d", training.step, settings.trainer.steps)
        began = time.monotonic()
        training.train()
        log.info("trained in %.0f s, %.0f s of it harvesting", time.monotonic() - began, source.harvest_seconds)
        autoencoder = fold(training.members[0].autoencoder, training.scale)
        metrics, firing_frequency = self._evaluate(autoencoder, model, source)
        save_saelens(autoencoder, self.folder.sae, self._provenance(model), firing_frequency)
        plot_training(self.folder.metrics, self.folder.plots / "training.png")
        return self._finish(metrics, firing_frequency, training.step * settings.trainer.batch_size)

    def evaluate_existing(self) -> dict[str, Any]:
        """Evaluate the autoencoder at `sae.path`."""
        assert self.settings.sae.path is not None
        path = Path(self.settings.sae.path).expanduser()
        autoencoder = load_saelens(path)
        made_for = read_provenance(path)
        if made_for.hook_name not in (None, self.settings.site.hook_name):
            raise ValueError(
                f"the autoencoder in {path} was made for {made_for.hook_name}, but site {self.settings.site} is "
                f"{self.settings.site.hook_name}; set site and site.layer to where it belongs"
            )
        model, source = self._open_source()
        if made_for.model_name not in (None, model.name, self.settings.model.path):
            log.warning("the autoencoder was made for model %s and is evaluated on %s", made_for.model_name, model.name)
        if autoencoder.d_in != source.d_in:
            raise ValueError(
                f"the autoencoder in {self.settings.sae.path} reads vectors of width {autoencoder.d_in}, but "
                f"{self.settings.site} of {model.name} has width {source.d_in}; choose the model and site it was "
                "made for"
            )
        return self._finish(*self._evaluate(autoencoder.to(model.device), model, source), step=0)

    def _open_source(self) -> tuple[TransformerLensModel, ActivationSource]:
        settings = self.settings
        model = open_language_model(settings.model)
        model.check_site(settings.site)
        d_in = model.width(settings.site)
        settings.arch.check_width(d_in)
        text = {
            part: PackedTokens(
                open_documents(settings.dataset, part, settings.seed),
                model,
                rows=model.batch_size,
                context=settings.dataset.context,
                skip_positions=settings.dataset.skip_positions,
                exclude_special_tokens=settings.dataset.exclude_special_tokens,
                repeat=part is Part.train,
            )
            for part in Part
        }
        source = ActivationSource(
            model,
            settings.site,
            d_in,
            text[Part.train],
            text[Part.held_out],
            settings.source,
            settings.seed,
            heartbeat=self.interruption.check,
        )
        # Before the hours of training, not after them.
        source.held_out_rows(1)
        return model, source

    def _training(self, model: TransformerLensModel, source: ActivationSource) -> TrainingRun:
        settings, state = self.settings, self.state
        generator = torch.Generator().manual_seed(settings.seed)
        autoencoder = settings.arch.build(source.d_in, generator).to(model.device)
        log.info(
            "%s: d_in %d, d_sae %d, at %s of %s",
            type(autoencoder).__name__, autoencoder.d_in, autoencoder.d_sae, settings.site, model.name,
        )  # fmt: skip
        if state is None:
            scale = scale_of(source.first_vectors(), settings.trainer.activation_scale)
            initialise_from(autoencoder, source.first_vectors(), scale)
        else:
            scale = state["scale"]
        member = Member(autoencoder, Objective(settings.loss), settings.trainer, scale, settings.seed)
        training = TrainingRun(
            [member], source, scale, settings.trainer, self.tracker, self.checkpoints, self.interruption
        )
        if state is not None:
            training.load(state)
        return training

    def _provenance(self, model: TransformerLensModel) -> Provenance:
        settings = self.settings
        return Provenance(
            model_name=settings.model.path or model.name,
            hook_name=settings.site.hook_name,
            context_size=settings.dataset.context,
            prepend_bos=model.bos_id is not None,
            dataset_path=settings.dataset.path or settings.dataset.name,
            exclude_special_tokens=settings.dataset.exclude_special_tokens,
        )

    def _evaluate(
        self, autoencoder: Autoencoder, model: TransformerLensModel, source: ActivationSource
    ) -> tuple[dict[str, float], Tensor]:
        """Metrics by name, and (d_sae,) how often each latent fires."""
        settings = self.settings
        fisher = next((term for term in settings.loss.values() if isinstance(term, Fisher)), Fisher())
        batches = source.held_out(settings.eval.tokens, settings.eval.batch_size)
        vectors = evaluate_vectors(autoencoder, batches, fisher)
        metrics = dict(vectors.scalars)
        if settings.eval.splice_tokens > 0:
            log.info("running %s with the reconstruction in place of its activations", model.name)
            tokens, keep = source.held_out_rows(settings.eval.splice_tokens)
            metrics |= evaluate_splice(
                model, settings.site, autoencoder, tokens, keep, vectors.mean_activation, settings.model.batch_size
            )
        return metrics, vectors.firing_frequency

    def _finish(self, metrics: dict[str, float], firing_frequency: Tensor, step: int) -> dict[str, Any]:
        settings, folder = self.settings, self.folder
        results = flat_results(metrics) | {"density_histogram": density_histogram(firing_frequency)}
        write_json(folder.results, results)
        self.tracker.log({f"eval/{name}": value for name, value in metrics.items()}, step)
        plot_firing(results["density_histogram"], metrics["dead_share"], folder.plots / "firing.png")
        print(f"\n{results_table(metrics)}\n\nrun folder:  {folder.path}")
        if settings.tracking.mlflow:
            uri = resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))
            print(f"MLflow UI:   {ui_command(uri)}")
        return results
