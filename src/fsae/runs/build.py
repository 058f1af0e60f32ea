"""The parts of a run, built from its settings: the source, the training, and the trained autoencoders."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import End, Ends, Scaling
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.autoencoders.warm_start import check_start
from fsae.configuration.schema import RunSettings, Task
from fsae.couplings.coupling import Coupling
from fsae.couplings.jacobian import JacobianCoupling
from fsae.couplings.mutual import MutualCoupling
from fsae.devices import dtype_of, warn_if_bfloat16_is_slow
from fsae.evaluation.subject import Examined
from fsae.evaluation.suite import held_out_samples
from fsae.export.dictionary_files import load_members, members_at, stored_at
from fsae.export.folding import fold
from fsae.language_models.mlp import MLP
from fsae.losses.fisher import fisher_of, with_fisher_measured
from fsae.losses.objective import Objective
from fsae.outputs.metric_log import MetricSink
from fsae.outputs.run_folder import exported_in
from fsae.seeds import seed_of
from fsae.sources.activation_store import checksum_of
from fsae.sources.source import Request, Source
from fsae.training.checkpoints import Checkpoints
from fsae.training.loop import Training
from fsae.training.room import RoomCheck
from fsae.training.scaling import Scale

log = logging.getLogger(__name__)


def request_of(settings: RunSettings) -> Request:
    """Return the request of a run to its source."""
    harvest = settings.task is Task.harvest
    return Request(
        model=settings.model,
        site=settings.site,
        layout=settings.layout,
        dataset=settings.dataset,
        training_samples=settings.trainer.samples if settings.task in (Task.train, Task.harvest) else 0,
        held_out_samples=held_out_samples(settings.eval),
        stores=Path(settings.paths.activations),
        harvest=harvest,
        partners=any("partners" in term.needs_of_source for term in settings.loss.values()),
        spliced=not harvest and any("language_model" in each.needs for each in settings.eval.values()),
    )


@contextmanager
def open_sources(settings: Sequence[RunSettings], heartbeat: Callable[[], None]) -> Iterator[list[Source]]:
    """Yield the opened source of each run of a pack; runs on one stream have the same one."""
    streams: dict[Hashable, Request] = {}
    keys: list[Hashable] = []
    for each in settings:
        request = request_of(each)
        keys.append(key := each.source.stream_key(request))
        known = streams.setdefault(key, request)
        most = max(known.training_samples, request.training_samples)
        partners = known.partners or request.partners
        streams[key] = replace(known, training_samples=most, partners=partners)
    with settings[0].source.open_together(list(streams.values()), heartbeat) as opened:
        sources = dict(zip(streams, opened, strict=True))
        yield [sources[key] for key in keys]


def check_memory(fresh: Sequence[tuple[RunSettings, Source]]) -> None:
    """Raise ValueError if memory is too small to train the new runs together; resumed runs already hold their share."""
    needing: dict[RoomCheck, list[tuple[AutoencoderSettings, Ends]]] = {}
    for settings, source in fresh:
        for check in settings.trainer.room_checks:
            wanted = [(settings.arch, ends) for ends in _ends(settings, source)]
            needing.setdefault(check, []).extend(wanted)
    for check, wanted in needing.items():
        check(wanted, fresh[0][1].device)


def warn_of_slow_products(fresh: Sequence[tuple[RunSettings, Source]]) -> None:
    """Log a warning if one of the new runs computes its products in a type that is slow on this machine."""
    if any(settings.trainer.rounds_products for settings, _ in fresh):
        warn_if_bfloat16_is_slow("trainer.precision is bf16", "trainer.precision=fp32", fresh[0][1].device)


def training_of(
    settings: RunSettings,
    source: Source,
    scaling_by: Callable[[Scale], Scaling],
    state: dict[str, Any] | None,
    tracker: MetricSink,
    checkpoints: Checkpoints | None,
) -> Training:
    """Build the training of a run.

    Args:
        settings: the run's settings.
        source: the source of the vectors.
        scaling_by: measures the factors by which training multiplies the vectors.
        state: the checkpoint's state from which training continues; None at the beginning.
        tracker: logs the measures.
        checkpoints: stores the states; None if no state is kept.

    Raises:
        ValueError: the settings do not fit vectors of this width, all vectors are zero, or the dictionary of
            `arch.warm_start` is no start for these weights.
    """
    of_members = _ends(settings, source)
    for ends in of_members:
        settings.check_ends(ends)
    autoencoders = [_fresh(settings, number, ends, source.device) for number, ends in enumerate(of_members)]
    autoencoder = autoencoders[0]
    # An autoencoder that cannot be folded and exported cannot be measured: refused before the source makes a vector.
    autoencoder.check_algebra()
    known = _known(settings.arch, autoencoders) if state is None else [None] * len(autoencoders)
    scaling = scaling_by(settings.trainer.activation_scale) if state is None else Scaling.from_state(state["scale"])
    members = []
    for number, (each, end) in enumerate(zip(autoencoders, _read_by(settings), strict=True)):
        own, seed = scaling.at(end), _seed(settings, number)
        target_scale = each.ends.target.spread(own.target, source.device)
        if state is None:
            vectors = source.first_targets if end is End.target else source.first_vectors
            targets = None if each.ends.same else source.first_targets
            scale = each.ends.input.spread(own.input, source.device)
            mlp = _mlp(source) if settings.arch.starts_from_mlp else None
            each.initialise(vectors, scale, targets, target_scale, seed, known[number], mlp)
        objective = Objective(with_fisher_measured(settings.loss))
        members.append(settings.trainer.build_learner(each, objective, target_scale, seed))
    log.info(
        "%s%s: d_in %d, d_sae %d, at %s; inputs are scaled by %s",
        f"{len(members)} x " if len(members) > 1 else "", type(autoencoder).__name__,
        autoencoder.d_in, autoencoder.d_sae, _described(settings), scaling,
    )  # fmt: skip
    training = Training(
        members,
        _coupling(settings, source, scaling),
        settings.population.reinitialise,
        source,
        scaling,
        settings.trainer,
        tracker,
        checkpoints,
        settings.layout.read_by,
    )
    if state is not None:
        training.load(state)
        log.info("resuming at step %d of %d", training.step, settings.trainer.steps)
    return training


def _seed(settings: RunSettings, number: int) -> int:
    """Return a member's seed; the first member has the run's seed, so it equals the autoencoder of a run of one."""
    return settings.seed if number == 0 else seed_of(settings.seed, number)


def _fresh(settings: RunSettings, number: int, ends: Ends, device: torch.device) -> Autoencoder:
    generator = torch.Generator().manual_seed(_seed(settings, number))
    return settings.arch.build(ends, generator).to(device)


def _known(arch: AutoencoderSettings, fresh: Sequence[Autoencoder]) -> Sequence[Autoencoder | None]:
    """Return the dictionary from which each member's weights start, for raw vectors; None for a start without one."""
    if arch.known_dictionary is None:
        return [None] * len(fresh)
    path = exported_in(Path(arch.known_dictionary).expanduser())
    known = load_members(path)
    if len(known) != len(fresh):
        raise ValueError(
            f"arch.warm_start is {path}, with {len(known)} where this run trains {len(fresh)}; name a run of as many "
            f"members, or one member, such as {path / '0'}"
        )
    for each, start in zip(fresh, known, strict=True):
        try:
            check_start(each, start)
        except ValueError as error:
            raise ValueError(f"arch.warm_start is {path}: {error}") from None
    return known


def start_identity(arch: AutoencoderSettings) -> dict[str, str]:
    """Return what distinguishes the dictionary from which weights start from others at its path, by a name for
    messages; nothing if they start without one."""
    if arch.known_dictionary is None:
        return {}
    path = exported_in(Path(arch.known_dictionary).expanduser())
    # A finished run is evaluated without it.
    weights = [stored_at(each).weights for each in members_at(path)] if path.exists() else []
    return {"the weights of arch.warm_start": " ".join(map(checksum_of, weights))}


def _read_by(settings: RunSettings) -> list[End | None]:
    """Return the end that each member reconstructs; None for a member between both ends."""
    return [*settings.layout.read_by] * (settings.population.size // len(settings.layout.read_by))


def _ends(settings: RunSettings, source: Source) -> list[Ends]:
    """Return the ends of each member."""
    both = source.input_layout, source.target_layout
    return [settings.layout.ends(*both, end) for end in _read_by(settings)]


def _coupling(settings: RunSettings, source: Source, scaling: Scaling) -> Coupling | None:
    """Return the term between the members; None without one.

    Raises:
        ValueError: the Jacobian of the language model's MLP is not known.
    """
    mutual, jacobian = settings.population.mutual, settings.population.jacobian
    if mutual.weight > 0:
        return MutualCoupling(mutual, settings.seed)
    if jacobian.weight == 0:
        return None
    return JacobianCoupling(jacobian, _mlp(source), scaling.input[0], scaling.target[0])


def _mlp(source: Source) -> MLP:
    """Return the MLP between the source's inputs and targets.

    Raises:
        ValueError: the language model's MLP is not known.
    """
    assert source.text is not None
    return source.text.model.mlp(source.text.site.layer).to(source.device)


def trained_of(training: Training, settings: RunSettings) -> Examined:
    """Return the autoencoders of a finished training, in raw units."""
    autoencoders = [
        fold(member.autoencoder, training.scaling.at(end))
        for member, end in zip(training.members, _read_by(settings), strict=True)
    ]
    samples = training.step * settings.trainer.batch_size
    return Examined(autoencoders, training.best, fisher_of(settings.loss.values()), samples)


def existing_of(
    autoencoders: Sequence[Autoencoder], folder: Path, best: int, settings: RunSettings, source: Source
) -> Examined:
    """Return existing autoencoders, on the source's device.

    Args:
        autoencoders: the autoencoders.
        folder: the folder that they were read from.
        best: the number of the one that was best in training.
        settings: the settings of the run that evaluates them.
        source: the source of the vectors.

    Raises:
        ValueError: they read vectors of another width than the source's.
    """
    wanted = settings.layout.ends(source.input_layout, source.target_layout, settings.layout.read_by[0])
    of_source = wanted.input.widths, wanted.target.widths
    own = autoencoders[0].ends.input.widths, autoencoders[0].ends.target.widths
    for verb, found, wanted in zip(("reads", "writes"), own, of_source, strict=True):
        if found != wanted:
            raise ValueError(
                f"the autoencoder in {folder} {verb} vectors of width {_shown(found)}, but {_described(settings)} "
                f"has width {_shown(wanted)}; choose the vectors that it was made for"
            )
    return Examined([each.to(source.device) for each in autoencoders], best, fisher_of(settings.loss.values()))


def _shown(widths: Sequence[int]) -> str:
    return " + ".join(map(str, widths))


def _described(settings: RunSettings) -> str:
    """Return a description of the origin of the vectors."""
    if settings.model is None:
        return "the source"
    return f"{settings.sites} of {settings.model.name} in {str(dtype_of(settings.model)).removeprefix('torch.')}"
