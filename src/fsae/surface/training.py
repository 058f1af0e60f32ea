"""Training a dictionary on vectors that are in memory."""

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.settings import AutoencoderSettings
from fsae.configuration.checks import check
from fsae.configuration.composition import composed_settings, config_of
from fsae.configuration.origin import origin_of
from fsae.configuration.resolvers import choice_names
from fsae.configuration.schema import RunSettings, Task
from fsae.console import bars
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.suite import Findings, measure
from fsae.export.saelens import Provenance
from fsae.losses.term import LossTerm
from fsae.memory import freed_memory_kept
from fsae.outputs.metric_log import MetricSink, Unrecorded
from fsae.runs.build import check_memory, start_identity, trained_of, training_of
from fsae.runs.outcome import export, record
from fsae.runs.run import Run
from fsae.sources.source import Source
from fsae.sources.vectors import VectorsSettings, as_vectors, digest
from fsae.surface.dictionary import Dictionary
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted, Interruption
from fsae.training.loop import train as train_all
from fsae.training.scaling import scaling_of
from fsae.training.settings import TrainerSettings


def train(
    vectors: Tensor | Iterable[Tensor],
    arch: str | AutoencoderSettings = "gated",
    *,
    loss: str | Mapping[str, LossTerm] | None = None,
    penalty: str | None = None,
    trainer: str | TrainerSettings | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    held_out: float = 0.1,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    **settings: Any,
) -> Dictionary:
    """Train a dictionary on vectors, with the defaults and the numbers of `python -m fsae.run`.

    The vectors stay in memory and are shuffled again in each epoch. Training multiplies them by one factor
    (`trainer.activation_scale`), which is folded into the weights at the end: the dictionary reads raw vectors. The
    last vectors in their given order are held out, and `results` has the evaluation on them.

    Args:
        vectors: raw vectors of shape (n, d_in), or an iterable of such tensors, which is joined in memory.
        arch: a choice of `arch=`, such as "topk" or "released/gated", or a settings object.
        loss: a choice of `loss=`, or all terms by name; None takes the loss of the architecture.
        penalty: a choice of `penalty=`, such as "fisher" or "none"; None takes the command's default. It fills
            `loss.penalty`.
        trainer: a choice of `trainer=` ("adam", "fit", "pam"), or a settings object; None takes the architecture's.
        samples: training vectors in all, counting repetitions; None takes the trainer's, one million.
        batch_size: vectors per step; None takes the trainer's.
        seed: of the weights, the order of the vectors and every other draw.
        held_out: share of the vectors that is held out, the last ones.
        overrides: more settings in the command line's words, such as ["trainer.lr=1e-3", "loss.sparsity.weight=2"];
            none that an argument sets.
        folder: a run's folder to write: metrics.jsonl, checkpoints, results.json, plots and the dictionary in sae/. The
            same call with the same vectors continues a training that was stopped. None writes nothing.
        device: the device to train on; None takes the GPU if there is one.
        **settings: settings of the architecture, such as `k=32` or `d_sae=4096`; only if `arch` is a name.

    Returns:
        The dictionary in raw units, with the settings, the results, and the latents' density.

    Raises:
        ValueError: vectors that are no floating-point (n, d_in), too few of them, settings that do not exist or do
            not go together, a loss that is not finite, or a folder of another training.
        OSError: no space is left in the folder; the last checkpoint is untouched.
        KeyboardInterrupt: Ctrl-C; with a folder, the state is saved first.
    """
    joined = as_vectors(vectors, "vectors")
    of_vectors = VectorsSettings(seed=seed, d_in=joined.shape[1], held_out=held_out)
    source = of_vectors.stream(joined, _device(device))
    settled = _settings(of_vectors, arch, loss, penalty, trainer, seed, samples, batch_size, overrides, settings)
    if folder is None:
        examined = _trained(settled, source, None, Unrecorded(), None, Interruption())
        return _dictionary(settled, examined, _measured(settled, source, examined, Interruption()))
    data = {"the vectors": digest(joined)} | start_identity(settled.arch)
    return _recorded(settled, source, Path(folder).expanduser(), overrides, data)


def _settings(
    of_vectors: VectorsSettings,
    arch: str | AutoencoderSettings,
    loss: str | Mapping[str, LossTerm] | None,
    penalty: str | None,
    trainer: str | TrainerSettings | None,
    seed: int,
    samples: int | None,
    batch_size: int | None,
    overrides: Sequence[str],
    values: Mapping[str, Any],
) -> RunSettings:
    """Return a run's settings: those of the packaged YAML files with the caller's choices."""
    if not isinstance(arch, str) and values:
        raise ValueError(f"arch is a settings object, so {', '.join(values)} belongs in it; or give arch by its name")
    given = {"trainer.samples": samples, "trainer.batch_size": batch_size}
    name = arch if isinstance(arch, str) else choice_names().get(type(arch))
    if name is None and loss is None:
        raise ValueError(
            f"loss is None, but {type(arch).__name__} has no choice of `arch=`, which brings a loss; give one"
        )
    if penalty is not None and isinstance(loss, Mapping):
        raise ValueError(f"penalty is {penalty!r}, but loss has all terms; put a term named penalty into it")
    _check_overrides(overrides, given | {f"arch.{key}": value for key, value in values.items()})
    # Any source without a language model will do: these vectors replace it.
    words = ["source=sparse_sources", "tracking=none", f"seed={seed}", f"arch={name or 'standard'}"]
    named = {"loss": loss, "penalty": penalty, "trainer": trainer}
    words += [f"{group}={choice}" for group, choice in named.items() if isinstance(choice, str)]
    changes = {key: value for key, value in given.items() if value is not None}
    if trainer is not None and not isinstance(trainer, str):
        trainer = replace(trainer, **{key.removeprefix("trainer."): value for key, value in changes.items()})
        changes = {}
    composed = composed_settings([*words, *overrides], changes | {f"arch.{key}": each for key, each in values.items()})
    found = replace(
        composed,
        source=of_vectors,
        arch=composed.arch if isinstance(arch, str) else arch,
        loss=dict(loss) if isinstance(loss, Mapping) else composed.loss,
        trainer=composed.trainer if trainer is None or isinstance(trainer, str) else trainer,
    )
    if found.task is not Task.train:
        raise ValueError(f"task is {found.task.value}, and fsae.train trains; leave it out of overrides")
    if found.population.size > 1:
        raise ValueError(
            f"population.size is {found.population.size}, and fsae.train trains one dictionary; use python -m fsae.run"
        )
    named = any(word.lstrip("+").startswith(("eval=", "eval@")) for word in overrides)
    if "vectors" not in found.eval or (named and len(found.eval) > 1):
        raise ValueError(
            f"the evaluations are {', '.join(found.eval) or 'none'}, and fsae.train measures vectors alone; leave eval "
            "out of overrides, or use python -m fsae.run"
        )
    check(found)
    return found


def _check_overrides(overrides: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise ValueError if an override sets what an argument of `fsae.train` sets.

    Args:
        overrides: the overrides.
        given: values of arguments by the keys that they set; None for an argument that is not given.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] == "source":
            raise ValueError(f"overrides has {override}, but the vectors are the source; leave it out")
        if key in ("seed", "arch", "loss", "penalty", "trainer") or given.get(key) is not None:
            argument = key.rpartition(".")[2]
            raise ValueError(
                f"overrides has {override}, but {argument} is an argument of fsae.train; give it there only"
            )


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _recorded(
    settings: RunSettings, source: Source, folder: Path, overrides: Sequence[str], data: dict[str, str]
) -> Dictionary:
    """Train in a run's folder."""
    run = Run(settings, origin_of(config_of(settings), folder.absolute(), overrides), data)
    run.claim()
    try:
        run.begin(None)
        with _listening() as interruption:
            examined = _trained(settings, source, run.state, run.tracker, run.checkpoints, interruption)
            export(run, examined, source)
            found = _measured(settings, source, examined, interruption)
        record(run, examined, found)
    except BaseException as error:
        run.end(error)
        if isinstance(error, Interrupted):
            # The caller's own handlers are in place again.
            signal.raise_signal(getattr(signal, error.signal_name))
        raise
    run.end()
    return _dictionary(settings, examined, found)


def _trained(
    settings: RunSettings,
    source: Source,
    state: dict[str, Any] | None,
    tracker: MetricSink,
    checkpoints: Checkpoints | None,
    interruption: Interruption,
) -> Examined:
    scaling = cache(lambda kind: scaling_of(source, kind))
    with bars(), freed_memory_kept():
        if state is None:
            check_memory([(settings, source)])
        training = training_of(settings, source, scaling, state, tracker, checkpoints)
        for _, error in train_all([training], interruption):
            if error is not None:
                raise error
    return trained_of(training, settings)


def _measured(settings: RunSettings, source: Source, examined: Examined, interruption: Interruption) -> Findings:
    (found,) = measure(Subject([examined], source, interruption.check), {"vectors": settings.eval["vectors"]})
    found.check()
    return found


def _dictionary(settings: RunSettings, examined: Examined, found: Findings) -> Dictionary:
    (autoencoder,), (density,) = examined.autoencoders, found.densities
    provenance = Provenance(matryoshka_widths=settings.matryoshka_widths(autoencoder.d_sae))
    return Dictionary(
        autoencoder, settings=settings, provenance=provenance, results=found.results(), density=density.float()
    )


@contextmanager
def _listening() -> Iterator[Interruption]:
    """Listen to signals if this thread may, which is the main one."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    with interruption:
        yield interruption
