"""What runs have made: their autoencoders, measured side by side, exported and reported, each to its own folder."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fsae.analysis.region_plots import plot_lift, plot_region_sizes, plot_regions
from fsae.analysis.run_plots import plot_density, plot_sharing, plot_training
from fsae.autoencoders.autoencoder import Autoencoder
from fsae.configuration.schema import Task
from fsae.devices import rows_at_once
from fsae.evaluation.agreement import agreement, truth_by_sharing
from fsae.evaluation.geometry import Geometry, evaluate_geometry, size_histogram
from fsae.evaluation.results import flat_results, results_table
from fsae.evaluation.sparsity import density_histogram
from fsae.evaluation.splice import evaluate_splice
from fsae.evaluation.truth import Truth, evaluate_truth
from fsae.evaluation.vectors import evaluate_vectors
from fsae.export.saelens import Provenance, save_saelens
from fsae.files import write_json
from fsae.language_models.identity import published_as
from fsae.losses.fisher import Fisher
from fsae.outputs.sweep_folder import is_job
from fsae.progress import Progress, working
from fsae.runs.run import Run
from fsae.sources.activations import ActivationSource
from fsae.sources.source import Batch, Source
from fsae.sources.supply import Supply
from fsae.sources.synthetic.source import SyntheticSource
from fsae.sources.tokens import special_tokens
from fsae.tracking.server import resolve_uri, ui_command

log = logging.getLogger(__name__)

# Of the variance, in one vector of a thousand: beyond this share fvu is a statement about these.
MOST_OF_TAIL = 0.2

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run and the autoencoders that it made or read, in raw units.

    Attributes:
        run: which.
        autoencoders: one; the members of a population otherwise.
        tokens: what they were trained on here.
        best: the member with the least unexplained variance at the end of training.
    """

    run: Run
    autoencoders: list[Autoencoder]
    tokens: int
    best: int


def evaluate(made: Sequence[TrainedRun], source: Source, heartbeat: Callable[[], None]) -> None:
    """Measure all at once, and finish each run with its own numbers; `heartbeat` may raise to stop the measuring."""
    settings = made[0].run.settings
    autoencoders = [autoencoder for each in made for autoencoder in each.autoencoders]
    fishers = [
        next((term for term in each.run.settings.loss.values() if isinstance(term, Fisher)), Fisher())
        for each in made
        for _ in each.autoencoders
    ]

    def held_out(label: str) -> Iterator[Batch]:
        progress = Progress(label, settings.eval.tokens, source.unit)
        for batch in _with_heartbeat(source.held_out(settings.eval.tokens, settings.eval.batch_size), heartbeat):
            yield batch
            progress.advance(len(batch.inputs))
        progress.close()

    vectors = evaluate_vectors(autoencoders, held_out("evaluating"), fishers)
    scalars = [measured.scalars for measured in vectors]
    if isinstance(source, ActivationSource):
        scalars = [measured | {"massive_share": source.massive_share} for measured in scalars]
    _warn_of_tail(scalars[0]["top_variance_share"], source)
    truths: list[Truth] = []
    geometries: list[Geometry] = []
    if isinstance(source, ActivationSource) and settings.eval.splice_tokens > 0:
        model, site, _ = settings.place()
        with working(f"running {model.name} with the reconstruction in place of its activations"):
            tokens, keep = source.held_out_rows(settings.eval.splice_tokens)
            spliced = evaluate_splice(
                source.model,
                site,
                autoencoders,
                tokens,
                keep,
                vectors[0].mean_activation,
                rows_at_once(model, tokens.shape[1]),
                heartbeat,
                source.norm_limit,
            )
        scalars = [measured | more for measured, more in zip(scalars, spliced, strict=True)]
    if isinstance(source, SyntheticSource):
        samples = source.held_out_codes(settings.eval.tokens)
        truths = evaluate_truth(autoencoders, source.features, _with_heartbeat(samples, heartbeat))
        scalars = [measured | truth.scalars for measured, truth in zip(scalars, truths, strict=True)]
    if settings.eval.geometry:
        geometries = evaluate_geometry(autoencoders, held_out("evaluating regions"), heartbeat)
        scalars = [measured | geometry.scalars for measured, geometry in zip(scalars, geometries, strict=True)]
    frequencies = [measured.firing_frequency for measured in vectors]
    # Those that were left out for their norm were there.
    held_out_found = source.held_out_found if isinstance(source, ActivationSource) else vectors[0].samples
    for each in made:
        size = len(each.autoencoders)
        of_run, scalars = scalars[:size], scalars[size:]
        firing, frequencies = frequencies[:size], frequencies[size:]
        known, truths = truths[:size], truths[size:]
        shapes, geometries = geometries[:size], geometries[size:]
        with each.run.alone():
            supply = _supply(each, source, held_out_found)
            with working("exporting and drawing"):
                if settings.task is Task.train:
                    _export(each, firing, source)
                results, table = _report(each, of_run, firing, known, shapes, supply, heartbeat)
            finish(each.run, results, table)


def _supply(made: TrainedRun, source: Source, held_out: int) -> Supply:
    of_text = isinstance(source, ActivationSource)
    taken = made.tokens if made.run.settings.task is Task.train else None
    return Supply(
        trained=taken,
        distinct=None if taken is None else source.distinct(taken),
        wanted=source.wanted(taken) if of_text and taken is not None else None,
        held_out=held_out,
        held_out_wanted=made.run.settings.eval.tokens,
        skipped_rows=source.skipped_rows if of_text else None,
    )


def _warn_of_tail(share: float, source: Source) -> None:
    if not share > MOST_OF_TAIL:
        return
    remedy = ""
    if isinstance(source, ActivationSource):
        remedy = ": lower source.max_norm_multiple, or raise dataset.skip_positions"
    log.warning(
        "0.1 %% of the held-out vectors hold %.0f %% of the variance. fvu says how these are reconstructed, and little "
        "of all others%s",
        100 * share, remedy,
    )  # fmt: skip


def _with_heartbeat(batches: Iterable[Item], heartbeat: Callable[[], None]) -> Iterator[Item]:
    for batch in batches:
        heartbeat()
        yield batch


def _export(made: TrainedRun, firing: Sequence[Tensor], source: Source) -> None:
    settings, folder = made.run.settings, made.run.folder
    model, site, dataset = settings.model, settings.site, settings.dataset
    provenance = Provenance()
    if model is not None and site is not None and dataset is not None and isinstance(source, ActivationSource):
        special: bool | list[int] = dataset.exclude_special_tokens
        if dataset.exclude_tokens:
            own = special_tokens(source.model) if dataset.exclude_special_tokens else []
            special = sorted({*own, *dataset.exclude_tokens})
        if dataset.prefix or dataset.chat_roles:
            log.warning(
                "SAELens has no names for dataset.prefix and dataset.chat_roles: what %s says of them only task=eval "
                "heeds",
                folder.sae,
            )
        model_name, model_note = published_as(model)
        provenance = Provenance(
            model_name=model_name,
            model_note=model_note,
            hook_name=site.hook_name,
            context_size=dataset.tokens_per_row,
            prepend_bos=source.prepends_bos,
            dataset_path=dataset.path or dataset.name,
            exclude_special_tokens=special,
            seqpos_slice=[dataset.skip_positions, None] if dataset.skip_positions else None,
            max_activation_norm=source.norm_limit,
            prefix=dataset.prefix,
            chat_roles=dataset.chat_roles,
        )
    alone = len(made.autoencoders) == 1
    for number, (autoencoder, frequency) in enumerate(zip(made.autoencoders, firing, strict=True)):
        save_saelens(autoencoder, folder.sae if alone else folder.sae / str(number), provenance, frequency)
    plot_training(folder.metrics, folder.plots / "training.png")


def _report(
    made: TrainedRun,
    scalars: Sequence[dict[str, float]],
    firing: Sequence[Tensor],
    truths: Sequence[Truth],
    geometries: Sequence[Geometry],
    supply: Supply,
    heartbeat: Callable[[], None],
) -> tuple[dict[str, Any], str]:
    """The run's numbers and a table: of a population the means over members, what these share, and each one's own."""
    run = made.run
    metrics = {name: sum(each[name] for each in scalars) / len(scalars) for name in scalars[0]}
    of_each: dict[str, float] = {}
    histograms = [density_histogram(each) for each in firing]
    histogram = histograms[0] | {"latents": torch.tensor([each["latents"] for each in histograms]).sum(0).tolist()}
    if len(scalars) > 1:
        decoders = [autoencoder.W_dec for autoencoder in made.autoencoders]
        compared = agreement(decoders, [each > 0 for each in firing], heartbeat)
        metrics |= compared.scalars | {"best_fvu": scalars[made.best]["fvu"], "best_member": float(made.best)}
        sharing = {"found_by": compared.found_by.tolist(), "closest": compared.closest.tolist()}
        if truths:
            nearest = torch.stack([truth.nearest_cosine for truth in truths])
            metrics |= truth_by_sharing(compared, nearest)
            sharing["nearest_cosine"] = nearest.tolist()
        of_each = {f"{number}/{name}": value for number, each in enumerate(scalars) for name, value in each.items()}
        write_json(run.folder.sharing, sharing)
        plot_sharing(run.folder.sharing, run.folder.plots / "sharing.png")
    plot_density(histogram, metrics["dead_share"], run.folder.plots / "firing.png")
    region_histogram = _picture(geometries[made.best], run.folder.plots) if geometries else {}
    numbers = supply.numbers()
    run.tracker.log({f"eval/{name}": value for name, value in (metrics | of_each).items()} | numbers, made.tokens)
    if not metrics["fvu"] <= 1:
        made_for = "Was it made for this model, this site and raw activations?"
        log.warning(
            "eval/fvu is %.3g: the mean of the activations alone would be a better reconstruction, so none of these "
            "numbers says anything of a dictionary. %s",
            metrics["fvu"],
            made_for if run.settings.task is Task.eval else "See whether training diverged.",
        )
    for sentence in supply.shortages():
        log.warning("%s", sentence)
    results = flat_results(metrics | of_each) | numbers | {"density_histogram": histogram} | region_histogram
    return results, results_table(metrics)


def _picture(geometry: Geometry, plots: Path) -> dict[str, Any]:
    """Draw one autoencoder's regions; returns how many of them have how many samples."""
    sizes, plane = size_histogram(geometry.region_sizes), geometry.plane
    plot_region_sizes(sizes["from"], sizes["regions"], plots / "region_sizes.png")
    if plane is None:
        log.info("no three held-out samples span a plane, so there is no picture of regions in one")
        return {"region_histogram": sizes}
    regions, edges = plane.regions.numpy(), plane.edges.numpy()
    sites = None if plane.sites is None else plane.sites.numpy()
    plot_regions(regions, edges, plane.points.numpy(), sites, plots / "regions.png")
    if plane.lift is not None:
        plot_lift(regions, edges, plane.lift.numpy(), plots / "voronoi_lift.png")
    return {"region_histogram": sizes}


def finish(run: Run, results: dict[str, Any], table: str | None = None) -> None:
    """End a run with its results; those of a run of its own are printed once they are written and handed to MLflow."""
    write_json(run.folder.results, results)
    run.results = results
    run.end()
    if is_job(run.folder.path):
        # Its sweep's end shows all jobs in one table.
        if results.get("eval/fvu") is not None:
            log.info("held out: fvu %.4g, l0 %.4g", results["eval/fvu"], results["eval/l0"])
        return
    if table is not None:
        print(f"\n{table}")
    print(f"\nrun folder:  {run.folder.path}")
    if run.settings.tracking.mlflow:
        uri = resolve_uri(run.settings.tracking.uri, Path(run.settings.paths.outputs))
        print(f"MLflow UI:   {ui_command(uri)}")
