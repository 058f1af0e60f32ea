"""Checks between groups of settings, before anything heavy is imported or loaded."""

from dataclasses import replace
from enum import Enum
from pathlib import Path

from fsae.autoencoders.layout import Ends
from fsae.configuration.schema import RunSettings, Task
from fsae.couplings.jacobian import check_pair
from fsae.export.dictionary_files import members_at, read_provenance, stored_at
from fsae.language_models.settings import Device, DType, ModelSettings
from fsae.language_models.shape import shape_of
from fsae.losses.fisher import FisherEstimator, fisher_of
from fsae.losses.objective import check_terms
from fsae.outputs.run_folder import exported_in
from fsae.sources.documents import DatasetFormat, dataset_files
from fsae.sources.layout import layout_of
from fsae.tracking.server import resolve_uri
from fsae.training.resample import Scope


def check(settings: RunSettings) -> None:
    """Raise ValueError for the first settings that cannot be combined.

    Sizes that only a download would show are checked again when the model is open.
    """
    if settings.task is Task.eval:
        if settings.sae.path is None:
            raise ValueError("task=eval evaluates an existing autoencoder: name its folder with sae.path=FOLDER")
    elif settings.sae.path is not None and settings.task is not Task.reevaluate:
        raise ValueError("sae.path is only read by task=eval; add task=eval, or leave sae.path out")
    reconstruction = settings.loss.get("reconstruction")
    if reconstruction is None or reconstruction.weight == 0:
        what = "is missing" if reconstruction is None else "has the weight 0"
        raise ValueError(
            f"loss.reconstruction {what}, and without it nothing ties codes to their inputs; give it a positive weight"
        )
    if reconstruction.warm_up > 0:
        raise ValueError(
            f"loss.reconstruction.warm_up is {reconstruction.warm_up:g}, so that nothing would tie codes to their "
            "inputs at first; leave it at 0, and let other terms rise"
        )
    check_terms(settings.loss, settings.arch)
    for name, term in settings.loss.items():
        if missing := term.needs_of_source - settings.source.provides:
            raise ValueError(
                f"loss.{name} ({type(term).__name__}) needs a source with {', '.join(sorted(missing))}, which this one "
                "does not have; use source=activations, or another loss"
            )
    fisher = fisher_of(settings.loss.values())
    if settings.trainer.batch_size < 2 and fisher.estimator is FisherEstimator.unbiased:
        named = next((name for name, term in settings.loss.items() if term is fisher), None)
        raise ValueError(
            "trainer.batch_size is 1, and the unbiased estimate of the Fisher sums needs two samples per batch; raise "
            f"it{f', or set loss.{named}.estimator=batch' if named else ''}"
        )
    settings.trainer.check(settings.arch, settings.loss, settings.population)
    alike = settings.population.size > 1 and not settings.layout.pair
    if alike and settings.arch.same_start is not None:
        raise ValueError(
            f"population.size is {settings.population.size}, and {settings.arch.same_start} would give all members the "
            f"same decoder at the start; set {settings.arch.same_start}=null"
        )
    _check_pair(settings)
    if settings.arch.starts_from_mlp and (settings.site is None or not settings.layout.around_mlp(settings.site)):
        raise ValueError(
            "arch.decoder_init=mlp starts a transcoder from the MLP between its sites; choose layout=transcoder, or "
            "another arch.decoder_init"
        )
    if settings.task is Task.harvest:
        settings.source.check_harvest()
    if "language_model" in settings.source.provides:
        _check_activations(settings)
    else:
        _check_other_source(settings)
    settings.source.check_training(settings.trainer.samples, settings.trainer.batch_size)
    restart = settings.population.reinitialise
    if restart.scope is not Scope.none and restart.target_rate is None and not settings.arch.has_k:
        raise ValueError(
            "population.reinitialise.target_rate is null, which stands for k / d_sae, but this architecture has no k; "
            "set it to the share of samples on which a latent should be on"
        )
    if settings.tracking.mlflow:
        resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))


def check_files(settings: RunSettings) -> None:
    """Raise ValueError if a file or folder that the settings name does not exist on this machine."""
    if settings.sae.path is not None:
        read_provenance(Path(settings.sae.path).expanduser())
    if settings.arch.known_dictionary is not None and settings.task is Task.train:
        for each in members_at(exported_in(Path(settings.arch.known_dictionary).expanduser())):
            stored_at(each)
    if settings.dataset is not None and settings.dataset.format not in (DatasetFormat.hub, DatasetFormat.python_source):
        dataset_files(settings.dataset)
    path = getattr(settings.source, "path", None)
    if path is not None and not Path(path).expanduser().exists():
        raise ValueError(f"source.path: there is no file or folder {path} (seen from {Path.cwd()}); correct the path")


def _check_pair(settings: RunSettings) -> None:
    population = settings.population
    if not settings.layout.pair:
        if population.jacobian.weight > 0:
            raise ValueError(
                "population.jacobian is between two autoencoders around an MLP; choose layout=jacobian_pair, or set "
                "population.jacobian.weight=0"
            )
        return
    if settings.task is Task.eval:
        raise ValueError(
            "task=eval evaluates one autoencoder, and the layout is a pair; name one of them, as in "
            "sae.path=RUN/sae/0 site=mlp_in, or evaluate its run again with python -m fsae.evaluate RUN"
        )
    if population.size != 2:
        raise ValueError(f"population.size is {population.size}, and a pair has two members; set population.size=2")
    if population.mutual.weight > 0:
        raise ValueError(
            "population.mutual pulls together directions of one space, and the members of a pair are of two; set "
            "population.mutual.weight=0"
        )
    compared = [name for name, term in settings.loss.items() if "partners" in term.needs_of_source]
    if compared:
        raise ValueError(
            f"loss.{compared[0]} compares samples with partners, which a stream has at its input, and one member of "
            "the pair reads the target; choose another loss"
        )
    check_pair(settings.arch)


def _check_activations(settings: RunSettings) -> None:
    model, site = settings.model, settings.site
    if model is None or site is None or settings.dataset is None:
        raise ValueError("source=activations harvests from a language model: choose model, site and dataset")
    if settings.layout.model is not None:
        _check_other_model(model, settings.layout.model)
    sites = settings.layout.sites(site)
    shapes = {each: shape_of(each.model_in(model)) for each in (*sites.all, *settings.source.other_sites())}
    for each, shape in shapes.items():
        if shape is not None:
            shape.check_site(each, each.model_in(model).described)
    widths = {each: shape.width(each) for each, shape in shapes.items() if shape is not None}
    if len(widths) == len(shapes):
        inputs, targets = (layout_of(each, [widths[at] for at in each]) for each in sites)
        for end in settings.layout.read_by:
            settings.check_ends(settings.layout.ends(inputs, targets, end))
    dataset = settings.dataset
    predicting = [name for name, each in settings.eval.items() if "language_model" in each.needs]
    if predicting and dataset.skip_positions >= dataset.tokens_per_row - 1:
        raise ValueError(
            f"eval.{predicting[0]} needs next tokens, but dataset.skip_positions={dataset.skip_positions} keeps only "
            f"the last of {dataset.tokens_per_row} positions of a row, which has none; leave {predicting[0]} out of "
            "eval, as in eval=[vectors]"
        )


def _check_other_model(model: ModelSettings, other: ModelSettings) -> None:
    """Raise ValueError if there is no other model, or a crosscoder of both would not compare their weights alone."""
    undecided = {"dtype": DType.auto, "device": Device.auto, "batch_size": None}
    for name, default in undecided.items():
        own, others = (getattr(each, name) for each in (model, other))
        if others not in (own, default):
            own, others, default = (each.name if isinstance(each, Enum) else each for each in (own, others, default))
            raise ValueError(
                f"layout.model.{name} is {others}, and model.{name}={own} decides for both models; set layout.model."
                f"{name}={'null' if default is None else default}"
            )
    if replace(other, **{name: getattr(model, name) for name in undecided}) == model:
        raise ValueError(
            f"layout.model and model are both {model.name} with the same weights, and a crosscoder compares different "
            "ones; choose another model, or set layout.model.revision or layout.model.weights"
        )


def _check_other_source(settings: RunSettings) -> None:
    for name in ("model", "site", "dataset"):
        if getattr(settings, name) is not None:
            raise ValueError(f"{name} is chosen, but this source has nothing to do with a language model; leave it out")
    if not settings.layout.plain:
        raise ValueError("layout is between sites of a language model, which this source has none of; leave it out")
    if (d_in := settings.source.width()) is not None:
        settings.check_ends(Ends.of(d_in))
