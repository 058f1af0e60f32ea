"""`ravel`: whether some latents hold one attribute of an entity and not the others."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.controls import random_directions
from fsae.evaluation.downstream.entities import Entities, packaged_entities, ravel_entities
from fsae.evaluation.downstream.entity_prompts import KnownPrompts, known, prompts_about
from fsae.evaluation.downstream.interchange import (
    Held,
    Pairs,
    Schedule,
    Swap,
    learned_masks,
    pairs_of,
    share_right,
)
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import Tensors, digest_of_texts, keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, SEED, between
from fsae.seeds import seed_of
from fsae.sources.source import HeldOutText

_CONTROLS = {
    "random": "random directions",
    "swap": "whole vectors swapped",
    "none": "nothing swapped",
}
# Pairs of one forward pass.
_PAIRS_AT_ONCE = 64


class Score(NamedTuple):
    """Scores of one attribute.

    Attributes:
        cause: share of cause pairs that are answered with the source's value.
        isolation: share of isolation pairs that are answered with the base's own value.
    """

    cause: float
    isolation: float

    @property
    def disentanglement(self) -> float:
        return (self.cause + self.isolation) / 2


class _Task(NamedTuple):
    """An attribute with one drawing of pairs.

    Attributes:
        attribute: its name.
        seed: number of the drawing.
        train, test: pairs to learn a mask on, and to test it on.
    """

    attribute: str
    seed: int
    train: Pairs
    test: Pairs


class _Scores(NamedTuple):
    """Scores of a dictionary on one task.

    Attributes:
        score: with the learned mask.
        with_error: the same, and the base's error is kept.
        none: with an empty mask.
        latents: of the learned mask.
    """

    score: Score
    with_error: Score
    none: Score
    latents: int


@dataclass(frozen=True, kw_only=True)
class Ravel(Evaluation, group="eval.ravel"):
    """Disentanglement of an entity's attributes (RAVEL, Huang et al., arXiv 2402.17700), as SAEBench scores it.

    The language model answers questions about an entity's attributes; only prompts that it completes rightly count. In
    an interchange, the entity's last token gets (1 - g) * base's codes + g * source's codes, decoded without the error.
    g is a binary mask over latents, learned per attribute by gradients through the rest of the model (MDBM). Cause is
    the share of pairs that ask for the attribute and are then answered with the source's value; isolation is the share
    of pairs that ask for another attribute and keep the base's value. Disentanglement is the mean of the two, and all
    are means over attributes.

    Differences from SAEBench: an answer after an interchange is its first token, not six tokens (a prompt counts only
    if greedy generation gives the whole value); pairs of different values have different first tokens, in isolation
    pairs, too; fewer steps with a larger learning rate and a higher last temperature; one kind of entity at a time;
    several drawings of pairs give the noise.

    Attributes:
        entity: the kind of entity: country or city, or another one of RAVEL's files.
        path: a folder with RAVEL's files, or a data set of them on the hub, as adamkarvonen/ravel_prompts; null for the
            packaged countries and cities.
        revision: of the data set on the hub.
        entities, templates: that are asked, at most; the templates are per attribute.
        least: entities of an attribute, at least, that the model knows.
        steps, batch, lr: of learning a mask.
        pairs: test pairs of each attribute and kind.
        seeds: drawings of pairs; their standard deviation is the noise.
        seed: of entities, templates and pairs.
    """

    entity: str = "country"
    path: str | None = None
    revision: str | None = None
    entities: int = field(default=100, metadata=between(least=4, most=1_000_000))
    templates: int = field(default=3, metadata=COUNT)
    least: int = field(default=12, metadata=between(least=4, most=1_000_000))
    steps: int = field(default=32, metadata=COUNT)
    batch: int = field(default=24, metadata=between(least=2, most=100_000))
    lr: float = field(default=0.1, metadata=between(above=0, most=100))
    pairs: int = field(default=48, metadata=COUNT)
    seeds: int = field(default=2, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied(
            "ravel_disentanglement", Meaning("mean of ravel's cause and isolation", better=Better.more), _CONTROLS
        ),
        **accompanied(
            "ravel_cause",
            Meaning("interchanges that change an attribute", better=Better.more, shown=Shown.files),
            _CONTROLS,
        ),
        **accompanied(
            "ravel_isolation",
            Meaning("interchanges that keep other attributes", better=Better.more, shown=Shown.files),
            _CONTROLS,
        ),
        **accompanied(
            "ravel_with_error",
            Meaning("disentanglement with the error kept", better=Better.more, shown=Shown.files),
        ),
        "ravel_latents": Meaning("latents in the mask of an attribute", shown=Shown.files),
        "ravel_entities": Meaning("entities that the model knows", shown=Shown.files),
        "ravel_known": Meaning("share of prompts that the model knows", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's scores, and those of each attribute.

        Raises:
            ValueError: the data cannot be read, the site cannot be replaced, or the model knows too few answers.
        """
        text = subject.source.text
        assert text is not None
        entities = self._entities()
        text.model.check_splice(text.site)
        keep = keeper(text)
        asked = known(text, prompts_about(text.model, entities, text.prepends_bos), subject.heartbeat, keep)
        chosen = self._chosen(asked)
        tasks = self._tasks(chosen)
        dictionaries = len(subject.autoencoders)
        # The control is measured with the first drawing.
        masks = dictionaries * (len(tasks) + len([task for task in tasks if not task.seed]))
        progress = Progress("learning masks of latents", masks * self.steps, "steps")
        content = {"swapped": _digest_of(chosen.prompts), "pairs": _digest_of(task.test for task in tasks)}
        kept = keep(content, lambda: self._swapped(text, chosen, tasks, subject.heartbeat))
        swapped = [Score(*each) for each in kept["scores"].tolist()]
        measured = []
        for autoencoder in subject.autoencoders:
            held = self._held(autoencoder, chosen, tasks)
            scores = self._scores(text, chosen, held, progress, subject)
            own, controlled = scores[: len(tasks)], scores[len(tasks) :]
            numbers = _numbers(tasks, own, controlled, swapped)
            numbers["ravel_entities"] = float(len({each.entity for each in asked.prompts}))
            numbers["ravel_known"] = len(asked.prompts) / asked.asked
            measured.append((numbers, _by_attribute(tasks, own, swapped, asked)))
        progress.close()
        return [
            Measured([numbers for numbers, _ in own], content={"ravel_attributes": [each for _, each in own]})
            for own in subject.by_run(measured)
        ]

    def _entities(self) -> Entities:
        """Return the entities and templates that are asked."""
        if self.path is None:
            found = packaged_entities(self.entity)
        else:
            found = ravel_entities(self.path, self.entity, self.revision)
        draw = random.Random(seed_of(self.seed, "ravel's prompts"))
        names = sorted(found.values)
        kept = names if len(names) <= self.entities else draw.sample(names, self.entities)
        return Entities(
            {name: found.values[name] for name in kept},
            {
                attribute: draw.sample(list(all_of_them), min(self.templates, len(all_of_them)))
                for attribute, all_of_them in found.templates.items()
            },
        )

    def _chosen(self, asked: KnownPrompts) -> KnownPrompts:
        """Return the known prompts of the attributes that have enough entities.

        Raises:
            ValueError: these are fewer than two.
        """
        of_attribute = Counter(attribute for _, attribute in {(each.entity, each.attribute) for each in asked.prompts})
        enough = {attribute for attribute, count in of_attribute.items() if count >= self.least}
        if len(enough) < 2:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(of_attribute.items())) or "none"
            raise ValueError(
                f"eval.ravel: the model completes {len(asked.prompts)} of {asked.asked} prompts rightly (entities per "
                f"attribute: {counts}), and two attributes with {self.least} entities are needed; choose a larger "
                "model, raise eval.ravel.entities, or lower eval.ravel.least"
            )
        numbers = [number for number, each in enumerate(asked.prompts) if each.attribute in enough]
        return KnownPrompts([asked.prompts[number] for number in numbers], asked.vectors[numbers], asked.asked)

    def _tasks(self, chosen: KnownPrompts) -> list[_Task]:
        """Return each attribute with each drawing of pairs.

        Raises:
            ValueError: the known entities have too few different values.
        """
        tasks = []
        for seed in range(self.seeds):
            draw = random.Random(seed_of(self.seed, "ravel", seed))
            for attribute in sorted({each.attribute for each in chosen.prompts}):
                train, test = pairs_of(chosen, attribute, self.steps * max(1, self.batch // 2), self.pairs, draw)
                if not all((*train, *test)):
                    raise ValueError(
                        f"eval.ravel: the {len({each.entity for each in chosen.prompts})} known entities have no two "
                        f"values of {attribute}, or of the other attributes; raise eval.ravel.entities, or choose "
                        "other data"
                    )
                tasks.append(_Task(attribute, seed, train, test))
        return tasks

    def _score(
        self, text: HeldOutText, chosen: KnownPrompts, task: _Task, swap: Swap, heartbeat: Callable[[], None]
    ) -> Score:
        return Score(*(share_right(text, chosen, pairs, swap, _PAIRS_AT_ONCE, heartbeat) for pairs in task.test))

    def _swapped(
        self, text: HeldOutText, chosen: KnownPrompts, tasks: Sequence[_Task], heartbeat: Callable[[], None]
    ) -> Tensors:
        """Return the scores of whole activations swapped, (tasks, 2)."""
        scores = [self._score(text, chosen, task, _whole(chosen), heartbeat) for task in tasks]
        return {"scores": torch.tensor(scores, dtype=torch.float64)}

    def _held(self, autoencoder: Autoencoder, chosen: KnownPrompts, tasks: Sequence[_Task]) -> list[tuple[Held, _Task]]:
        """Return the dictionary with each task, and random directions of equal density with those of the first drawing;
        without the latter if no latent is on."""
        held = Held(autoencoder, chosen.vectors)
        control = random_directions(autoencoder, held.densities, chosen.vectors, self.seed)
        first = [] if control is None else [task for task in tasks if not task.seed]
        controlled = Held(control, chosen.vectors) if control is not None else held
        return [*((held, task) for task in tasks), *((controlled, task) for task in first)]

    def _scores(
        self,
        text: HeldOutText,
        chosen: KnownPrompts,
        held: Sequence[tuple[Held, _Task]],
        progress: Progress,
        subject: Subject,
    ) -> list[_Scores]:
        """Return the scores of each dictionary on its task, with a mask that is learned on its training pairs."""

        def beat() -> None:
            progress.advance(len(held))
            subject.heartbeat()

        schedule = Schedule(self.steps, self.batch, self.lr)
        masks = learned_masks(text, chosen, [(each, task.train) for each, task in held], schedule, beat)
        found = []
        for (each, task), mask in zip(held, masks, strict=True):
            gates = mask.to(each.rows)
            swaps = each.swap(gates), each.swap(gates, keeps_error=True), each.swap(torch.zeros_like(gates))
            scores = [self._score(text, chosen, task, swap, subject.heartbeat) for swap in swaps]
            found.append(_Scores(*scores, latents=int(mask.sum())))
        return found


def _digest_of(parts: Iterable[object]) -> str:
    return digest_of_texts(map(repr, parts))


def _whole(chosen: KnownPrompts) -> Swap:
    """Return the interchange of whole activations."""
    return lambda base, source: chosen.vectors[source]


def _numbers(
    tasks: Sequence[_Task], own: Sequence[_Scores], controlled: Sequence[_Scores], swapped: Sequence[Score]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("disentanglement", "cause", "isolation"):
        of_tasks = [getattr(each.score, name) for each in own]
        found |= _over_drawings(f"ravel_{name}", tasks, of_tasks)
        if controlled:
            found[f"ravel_{name}_random"] = _mean([getattr(each.score, name) for each in controlled])
        found[f"ravel_{name}_swap"] = _mean([getattr(each, name) for each in swapped])
        found[f"ravel_{name}_none"] = _mean([getattr(each.none, name) for each in own])
    found |= _over_drawings("ravel_with_error", tasks, [each.with_error.disentanglement for each in own])
    found["ravel_latents"] = _mean([each.latents for each in own])
    return found


def _over_drawings(name: str, tasks: Sequence[_Task], of_tasks: Sequence[float]) -> dict[str, float]:
    """Return the mean over drawings of the means over attributes, and its noise over drawings."""
    of_seeds = [
        _mean([value for task, value in zip(tasks, of_tasks, strict=True) if task.seed == seed])
        for seed in sorted({task.seed for task in tasks})
    ]
    return mean_and_noise(name, of_seeds)


def _by_attribute(
    tasks: Sequence[_Task], own: Sequence[_Scores], swapped: Sequence[Score], asked: KnownPrompts
) -> dict[str, dict[str, float | int]]:
    """Return the numbers of each attribute, by its name."""
    found: dict[str, dict[str, float | int]] = {}
    for attribute in dict.fromkeys(each.attribute for each in asked.prompts):
        prompts = [each for each in asked.prompts if each.attribute == attribute]
        found[attribute] = {"prompts": len(prompts), "entities": len({each.entity for each in prompts})}
        numbers = [number for number, task in enumerate(tasks) if task.attribute == attribute]
        if numbers:
            found[attribute] |= {
                "cause": _mean([own[number].score.cause for number in numbers]),
                "isolation": _mean([own[number].score.isolation for number in numbers]),
                "cause_swap": _mean([swapped[number].cause for number in numbers]),
                "isolation_swap": _mean([swapped[number].isolation for number in numbers]),
                "latents": _mean([own[number].latents for number in numbers]),
            }
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
