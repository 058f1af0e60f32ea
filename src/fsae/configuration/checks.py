"""What must hold between groups, found out before anything heavy is imported or loaded."""

import shutil
from pathlib import Path

from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.settings import DecoderNorm, SparseAutoencoderSettings
from fsae.autoencoders.topk import KSettings
from fsae.configuration.schema import RunSettings, Task
from fsae.couplings.mutual import Directions
from fsae.export.saelens import read_provenance
from fsae.language_models.shape import shape_of
from fsae.losses.auxiliary import GateReconstruction
from fsae.losses.objective import check_terms
from fsae.losses.reconstruction import SquaredError
from fsae.sources.documents import DatasetFormat, dataset_files
from fsae.sources.open_activations import ActivationSourceSettings, Cache
from fsae.tracking.server import resolve_uri
from fsae.training.pam_learner import PamSettings
from fsae.training.reinitialisation import Scope
from fsae.training.settings import AdamSettings, FitSettings


def check(settings: RunSettings) -> None:
    """Raise ValueError for the first pair of settings that cannot be run together.

    Sizes that are not known without a download are checked again once the model is open.
    """
    if settings.task is Task.eval:
        if settings.sae.path is None:
            raise ValueError("task=eval evaluates an existing autoencoder: say which with sae.path=FOLDER")
    elif settings.sae.path is not None:
        raise ValueError("sae.path is only read by task=eval; add task=eval, or leave sae.path out")
    reconstruction = settings.loss.get("reconstruction")
    if reconstruction is None or reconstruction.weight == 0:
        what = "is not there" if reconstruction is None else "has the weight 0"
        raise ValueError(
            f"loss.reconstruction {what}, and without it nothing holds codes to their inputs; leave it in, with a "
            "positive weight"
        )
    check_terms(settings.loss, settings.arch)
    _check_fitting(settings)
    _check_gate(settings)
    if isinstance(settings.source, ActivationSourceSettings):
        _check_activations(settings, settings.source)
    else:
        _check_other_source(settings, settings.source.width())
    if isinstance(settings.trainer, AdamSettings) and settings.trainer.compile and shutil.which("g++") is None:
        raise ValueError("trainer.compile has torch.compile make C++, and there is no g++; install it, or leave it out")
    restart = settings.population.reinitialise
    if restart.scope is not Scope.none and restart.target_rate is None and not isinstance(settings.arch, KSettings):
        raise ValueError(
            "population.reinitialise.target_rate is null, which stands for k / d_sae, but this architecture has no k; "
            "set it to the share of samples that a latent should be on in"
        )
    if isinstance(settings.trainer, PamSettings):
        _check_pam(settings)
    if settings.tracking.mlflow:
        resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))


def check_files(settings: RunSettings) -> None:
    """Raise ValueError where a file or folder of this machine that the settings name is not there."""
    if settings.sae.path is not None:
        read_provenance(Path(settings.sae.path).expanduser())
    if settings.dataset is not None and settings.dataset.format not in (DatasetFormat.hub, DatasetFormat.python_source):
        dataset_files(settings.dataset)
    path = getattr(settings.source, "path", None)
    if path is not None and not Path(path).expanduser().exists():
        raise ValueError(f"source.path: there is no file or folder {path} (seen from {Path.cwd()}); correct the path")


def _check_fitting(settings: RunSettings) -> None:
    arch, trainer = settings.arch, settings.trainer
    name = type(arch).__name__.removesuffix("Settings")
    if isinstance(arch, FittedSettings) != isinstance(trainer, FitSettings):
        how = ("has no gradients", "fit") if isinstance(arch, FittedSettings) else ("is trained by gradients", "adam")
        raise ValueError("arch {} {}: choose trainer={}".format(name, *how))
    if not isinstance(arch, FittedSettings):
        return
    for key, term in settings.loss.items():
        if key != "reconstruction" and term.weight > 0:
            raise ValueError(
                f"loss.{key}.weight is {term.weight}, but arch {name} is fitted to the squared error alone; set it to 0"
            )
    population = settings.population
    if population.mutual.weight > 0 or population.reinitialise.scope is not Scope.none:
        raise ValueError(
            f"arch {name} is fitted: nothing pulls members toward each other or starts them over; set "
            "population.mutual.weight=0 and population.reinitialise.scope=none"
        )


def _check_gate(settings: RunSettings) -> None:
    # Under PAM no gradient reaches the decoder.
    if isinstance(settings.trainer, PamSettings) or not isinstance(settings.arch, SparseAutoencoderSettings):
        return
    if settings.arch.decoder_norm is DecoderNorm.unit:
        return
    for key, term in settings.loss.items():
        if isinstance(term, GateReconstruction) and term.detach_decoder:
            raise ValueError(
                f"arch.decoder_norm is free, so the sparsity term shrinks decoder rows, and loss.{key} does not hold "
                f"what the gate needs of them: latents would all switch on. Set loss.{key}.detach_decoder=false, or "
                "arch.decoder_norm=unit"
            )


def _check_activations(settings: RunSettings, source: ActivationSourceSettings) -> None:
    model, site = settings.model, settings.site
    if model is None or site is None or settings.dataset is None:
        raise ValueError("source=activations harvests from a language model: choose model, site and dataset")
    shape = shape_of(model)
    if shape is not None:
        shape.check_site(site, model.name)
        for other in source.other_sites():
            shape.check_site(other, model.name)
        settings.check_width(shape.width(site))
    dataset, spliced = settings.dataset, settings.eval.splice_tokens
    if spliced > 0 and dataset.skip_positions >= dataset.tokens_per_row - 1:
        raise ValueError(
            f"eval.splice_tokens is {spliced}, but dataset.skip_positions={dataset.skip_positions} keeps the last of "
            f"{dataset.tokens_per_row} positions alone, which predicts nothing that is there; set eval.splice_tokens=0"
        )
    tokens = source.distinct_tokens(settings.trainer.samples)
    if tokens < settings.trainer.batch_size:
        raise ValueError(
            f"trainer.batch_size is {settings.trainer.batch_size}, more than source.tokens ({tokens}), the distinct "
            "activations it is drawn from"
        )
    if settings.task is Task.harvest and source.cache is Cache.none:
        raise ValueError("task=harvest fills the activation store, and source.cache is none; use disk or auto")


def _check_pam(settings: RunSettings) -> None:
    assert isinstance(settings.arch, SparseAutoencoderSettings)
    if settings.arch.tied:
        raise ValueError(
            "trainer=pam solves for a decoder of its own, and arch.tied makes it the encoder's; leave it out"
        )
    if settings.arch.decoder_norm is DecoderNorm.unit:
        raise ValueError(
            "arch.decoder_norm is unit, but trainer=pam solves for decoder rows of whatever norm is best; set "
            "arch.decoder_norm=free"
        )
    weights = [term.weight for term in settings.loss.values() if isinstance(term, SquaredError)]
    if weights != [1.0]:
        raise ValueError(
            "trainer=pam solves for the decoder of least squared error, and the encoder must be trained on the same, "
            f"but loss.reconstruction.weight is {weights[0] if weights else 'not there'}; set it to 1, and weigh the "
            "other terms against it"
        )
    mutual = settings.population.mutual
    if mutual.weight > 0 and mutual.directions is Directions.decoder:
        raise ValueError(
            "population.mutual pulls on decoders, which trainer=pam solves for without it; set "
            "population.mutual.directions=encoder"
        )


def _check_other_source(settings: RunSettings, d_in: int | None) -> None:
    for name in ("model", "site", "dataset"):
        if getattr(settings, name) is not None:
            raise ValueError(f"{name} is chosen, but this source has nothing to do with a language model; leave it out")
    if settings.task is Task.harvest:
        raise ValueError("task=harvest fills the activation store, which is for source=activations")
    if d_in is not None:
        settings.check_width(d_in)
