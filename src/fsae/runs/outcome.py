"""The end of runs: their autoencoders are exported and measured together, and each run's numbers are written, logged
and printed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsae.analysis.run_plots import plot_training
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.suite import Findings, measure
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_density, save_saelens
from fsae.language_models.identity import published_as
from fsae.outputs.results import results_table
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import is_job
from fsae.progress import working
from fsae.runs.run import Run
from fsae.sources.source import Source
from fsae.sources.tokens import special_tokens
from fsae.tracking.server import ui_command

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its evaluation's numbers by name, or the error that ended it early."""

    results: dict[str, Any] | None
    error: BaseException | None


def conclude(made: Mapping[Run, Examined], sources: Mapping[Run, Source], heartbeat: Callable[[], None]) -> None:
    """Export what runs have trained, measure the runs of each source at once, and finish each with its own numbers.

    Args:
        made: the autoencoders that each run trained or read.
        sources: the source of each run's vectors.
        heartbeat: may raise to stop the measuring.
    """
    # A trained autoencoder exists from here on, even if an evaluation fails.
    for run, examined in made.items():
        if examined.samples:
            with run.alone():
                export(run, examined, sources[run])
    for source in dict.fromkeys(sources.values()):
        there = {run: each for run, each in made.items() if sources[run] is source and not run.over}
        if there:
            _measure(there, source, heartbeat)


def _measure(made: Mapping[Run, Examined], source: Source, heartbeat: Callable[[], None]) -> None:
    examined = [replace(each, folder=run.folder.path, identity=run.identity) for run, each in made.items()]
    settings = next(iter(made)).settings
    # Runs on one stream are all pairs, or none is.
    subject = Subject(examined, source, heartbeat, settings.layout.read_by)
    # The results of a finished run are complete already, and may grow.
    grows = settings.task is Task.reevaluate

    def keep(findings: Sequence[Findings]) -> None:
        for run, found in zip(made, findings, strict=True):
            if grows and not run.over:
                with run.alone():
                    # Last the file for which an evaluation is left alone next time.
                    run.write_results(found.results())
                    found.write(run.folder)

    findings = measure(subject, settings.eval, keep)
    for (run, examined), found in zip(made.items(), findings, strict=True):
        if run.over:
            continue
        with run.alone():
            record(run, examined, found, written=grows)
            found.check()
            finish(run, found)


def export(run: Run, examined: Examined, source: Source) -> None:
    """Write the autoencoders that a run has trained, and draw its training."""
    folder = run.folder
    with working("exporting"):
        widths = run.settings.matryoshka_widths(examined.autoencoders[0].d_sae)
        read_by = run.settings.layout.read_by
        of_ends = [_provenance(run.settings, source if end is None else source.at(end), folder) for end in read_by]
        if len(of_ends) > 1:
            hooks = [each.hook_name for each in of_ends if each.hook_name is not None]
            of_ends = [replace(each, pair_hook_names=hooks) for each in of_ends]
        for number, (autoencoder, exported) in enumerate(
            zip(examined.autoencoders, _exports(folder, examined), strict=True)
        ):
            provenance = of_ends[number % len(of_ends)]
            save_saelens(autoencoder, exported, replace(provenance, matryoshka_widths=widths))
        plot_training(folder.metrics, folder.plots / "training.png")


def record(run: Run, examined: Examined, found: Findings, written: bool = False) -> None:
    """Write and log the findings on a run, and warn of shortages and of a useless autoencoder.

    Args:
        run: the run.
        examined: its autoencoders.
        found: the findings.
        written: whether the files of its evaluations are written already.
    """
    if not written:
        with working("drawing"):
            if examined.samples and found.densities:
                for exported, density in zip(_exports(run.folder, examined), found.densities, strict=True):
                    save_density(exported, density)
            found.write(run.folder)
    _warn_of_failure(found.numbers, run.settings.task)
    for sentence in found.supply.shortages():
        log.warning("%s", sentence)
    run.log_results(found.logged(), examined.samples)
    run.write_results(found.results())


def finish(run: Run, found: Findings | None) -> None:
    """End a run whose results are written; outside a sweep, print the findings."""
    run.end()
    if is_job(run.folder.path):
        # The sweep prints all jobs in one table at its end.
        if found is not None and "fvu" in found.numbers:
            log.info("held out: fvu %.4g, l0 %.4g", found.numbers["fvu"], found.numbers["l0"])
        return
    if run.settings.task is Task.reevaluate:
        # `fsae.evaluate` prints the numbers of all runs at its end.
        return
    if found is not None:
        print(f"\n{results_table(found.numbers, found.meanings)}")
    print(f"\nrun folder:  {run.folder.path}")
    for page in run.folder.latent_pages:
        print(f"latents:     {page}")
    if run.settings.tracking.mlflow:
        print(f"MLflow UI:   {ui_command(run.tracking_uri)}")


def _exports(folder: RunFolder, examined: Examined) -> list[Path]:
    """Return the folder of each exported autoencoder."""
    count = len(examined.autoencoders)
    return [folder.sae] if count == 1 else [folder.sae / str(number) for number in range(count)]


def _provenance(settings: RunSettings, source: Source, folder: RunFolder) -> Provenance:
    text = source.text
    if text is None:
        return Provenance()
    model, site, dataset = settings.place()
    sites = text.sites
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
    of_parts = [published_as(each.model_in(model)) for each in sites.input] if settings.layout.model else []
    return Provenance(
        model_name=model_name,
        model_note=model_note,
        hook_name=sites.input[0].hook_name,
        hook_name_out=None if sites.input == sites.target else sites.target[0].hook_name,
        hook_names=[each.hook_name for each in sites.input] if len(sites.input) > 1 else None,
        hook_names_out=[each.hook_name for each in sites.target]
        if sites.input != sites.target and len(sites.target) > 1
        else None,
        model_names=[name for name, _ in of_parts] or None,
        model_notes=[note for _, note in of_parts] or None,
        hook_head_index=site.head,
        context_size=dataset.tokens_per_row,
        prepend_bos=text.prepends_bos,
        dataset_path=dataset.path or dataset.name,
        exclude_special_tokens=special,
        seqpos_slice=[dataset.skip_positions, None] if dataset.skip_positions else None,
        max_activation_norm=text.norm_limit,
        max_activation_norms=None if sites.plain else text.norm_limits,
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
