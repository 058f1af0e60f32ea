"""What must hold between groups, found out before anything heavy is imported or loaded."""

from pathlib import Path

from fsae.configuration.schema import RunSettings, Task
from fsae.language_models.shape import shape_of
from fsae.losses.objective import check_terms
from fsae.sources.activations import Cache
from fsae.tracking.store import resolve_uri


def check(settings: RunSettings) -> None:
    """Raise ValueError for the first pair of settings that cannot be run together.

    Sizes that are not known without a download are checked again once the model is open.
    """
    if settings.task is Task.eval:
        if settings.sae.path is None:
            raise ValueError("task=eval evaluates an existing autoencoder: say which with sae.path=FOLDER")
    elif settings.sae.path is not None:
        raise ValueError("sae.path is only read by task=eval; add task=eval, or leave sae.path out")
    shape = shape_of(settings.model)
    if shape is not None:
        shape.check_site(settings.site, settings.model.name)
        for site in settings.source.other_sites():
            shape.check_site(site, settings.model.name)
        settings.arch.check_width(shape.width(settings.site))
    check_terms(settings.loss, settings.arch)
    tokens = settings.source.distinct_tokens(settings.trainer.tokens)
    if tokens < settings.trainer.batch_size:
        raise ValueError(
            f"trainer.batch_size is {settings.trainer.batch_size}, more than source.tokens ({tokens}), the distinct "
            "activations it is drawn from"
        )
    if settings.task is Task.harvest and settings.source.cache is Cache.none:
        raise ValueError("task=harvest fills the activation store, and source.cache is none; use disk or auto")
    if settings.tracking.mlflow:
        resolve_uri(settings.tracking.uri, Path(settings.paths.outputs))
