"""The end of trained runs: their autoencoders are exported and measured together, and each run's numbers are written,
logged and printed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.analysis.run_plots import plot_training
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.suite import held_out_samples, measure
from fsae.evaluation.vectors import VectorEvaluation
from fsae.export.saelens import Provenance, save_density, save_saelens
from fsae.language_models.identity import published_as
from fsae.losses.fisher import fisher_of
from fsae.outputs.results import results_table
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import is_job
from fsae.progress import working
from fsae.runs.build import TrainedRun
from fsae.runs.run import Run
from fsae.sources.source import HeldOutText, Source
from fsae.sources.tokens import special_tokens
from fsae.tracking.server import resolve_uri, ui_command

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its evaluation's numbers by name, or the error that ended it early."""

    results: dict[str, Any] | None
    error: BaseException | None


def conclude(made: Sequence[TrainedRun], source: Source, heartbeat: Callable[[], None]) -> None:
    """Export trained runs, measure all runs at once, and finish each with its own numbers.

    `heartbeat` may raise to stop the measuring.
    """
    task, evaluations = made[0].run.settings.task, made[0].run.settings.eval
    if task is Task.train:
        # A trained autoencoder exists from here on, even if an evaluation fails.
        for each in made:
            with each.run.alone(), working("exporting"):
                _export(each, source.text)
        made = [each for each in made if not each.run.over]
        if not made:
            return
    examined = [
        Examined(each.autoencoders, each.best, fisher_of(each.run.settings.loss.values()), each.run.folder.path)
        for each in made
    ]
    subject = Subject(examined, source, heartbeat)
    findings = measure(subject, evaluations)
    vectors = subject.found(VectorEvaluation)
    densities = None if vectors is None else subject.by_run([each.density for each in vectors])
    for number, (each, found) in enumerate(zip(made, findings, strict=True)):
        with each.run.alone():
            trained = each.samples if task is Task.train else None
            supply = source.supply(trained, subject.found_samples, held_out_samples(evaluations))
            with working("drawing"):
                if task is Task.train and densities is not None:
                    for folder, density in zip(_exports(each), densities[number], strict=True):
                        save_density(folder, density)
                found.write(each.run.folder)
            _warn_of_failure(found.numbers, task)
            for sentence in supply.shortages():
                log.warning("%s", sentence)
            # The counts in the results are those of `vectors`: they stay if only other evaluations are repeated.
            counted = task is not Task.reevaluate or "vectors" in evaluations
            numbers = supply.numbers() if counted else {}
            each.run.log_results(found.logged() | numbers, each.samples)
            finish(each.run, found.results() | numbers, results_table(found.numbers, found.meanings))


def finish(run: Run, results: dict[str, Any], table: str | None = None) -> None:
    """End a run with its results; outside a sweep, print them once they are written and sent to MLflow."""
    run.write_results(results)
    run.end()
    if is_job(run.folder.path):
        # The sweep prints all jobs in one table at its end.
        if results.get("eval/fvu") is not None:
            log.info("held out: fvu %.4g, l0 %.4g", results["eval/fvu"], results["eval/l0"])
        return
    if run.settings.task is Task.reevaluate:
        # `fsae.evaluate` prints the numbers of all runs at its end.
        return
    if table is not None:
        print(f"\n{table}")
    print(f"\nrun folder:  {run.folder.path}")
    if run.settings.tracking.mlflow:
        uri = resolve_uri(run.settings.tracking.uri, Path(run.settings.paths.outputs))
        print(f"MLflow UI:   {ui_command(uri)}")


def _exports(made: TrainedRun) -> list[Path]:
    """Return the folder of each exported autoencoder."""
    sae, count = made.run.folder.sae, len(made.autoencoders)
    return [sae] if count == 1 else [sae / str(number) for number in range(count)]


def _export(made: TrainedRun, text: HeldOutText | None) -> None:
    folder, settings = made.run.folder, made.run.settings
    provenance = Provenance() if text is None else _provenance(settings, text, folder)
    for autoencoder, exported in zip(made.autoencoders, _exports(made), strict=True):
        save_saelens(autoencoder, exported, provenance)
    plot_training(folder.metrics, folder.plots / "training.png")


def _provenance(settings: RunSettings, text: HeldOutText, folder: RunFolder) -> Provenance:
    model, site, dataset = settings.place()
    special: bool | list[int] = dataset.exclude_special_tokens
    if dataset.exclude_tokens:
        own = special_tokens(text.model) if dataset.exclude_special_tokens else []
        special = sorted({*own, *dataset.exclude_tokens})
    if dataset.prefix or dataset.chat_roles:
        log.warning(
            "SAELens has no names for dataset.prefix and dataset.chat_roles: only fsae reads them in %s",
            folder.sae,
        )
    model_name, model_note = published_as(model)
    return Provenance(
        model_name=model_name,
        model_note=model_note,
        hook_name=site.hook_name,
        context_size=dataset.tokens_per_row,
        prepend_bos=text.prepends_bos,
        dataset_path=dataset.path or dataset.name,
        exclude_special_tokens=special,
        seqpos_slice=[dataset.skip_positions, None] if dataset.skip_positions else None,
        max_activation_norm=text.norm_limit,
        prefix=dataset.prefix,
        chat_roles=dataset.chat_roles,
    )


def _warn_of_failure(numbers: dict[str, float], task: Task) -> None:
    fvu = numbers.get("fvu", 0.0)
    if not fvu <= 1:
        made_for = "Was it made for this model, this site and raw activations?"
        log.warning(
            "eval/fvu is %.3g: the mean of the activations alone would be a better reconstruction, so none of these "
            "numbers describes a useful dictionary. %s",
            fvu, "Check whether training diverged." if task is not Task.eval else made_for,
        )  # fmt: skip
