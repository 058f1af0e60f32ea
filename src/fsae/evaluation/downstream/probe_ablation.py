"""Ablation of the latents to which a probe's decision is attributed: the common part of SCR and TPP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.controls import densities_in, random_directions
from fsae.evaluation.downstream.latent_scores import mean_differences
from fsae.evaluation.downstream.probe import Probe, auc, one_core
from fsae.evaluation.downstream.text_activations import Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import Pooling, mean_vectors, pooled, token_codes
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.seeds import seed_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# The numbers of ablated latents that have numbers of their own.
NAMED = (2, 5, 10, 20, 50, 100, 500)


@dataclass(frozen=True)
class ProbeTraining:
    """Settings of a probe's training, which are SAEBench's: its authors ask to leave the batch size as it is.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows per step; how much of a bias a probe learns depends on it.
        learning_rate: of AdamW.
        l1: penalty on the weights.
    """

    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-3
    l1: float = 1e-3


@dataclass(frozen=True, eq=False)
class ProbedRows:
    """Training and test rows of a probe.

    Attributes:
        train, test: numbers of texts.
        train_labels, test_labels: 0 or 1 for each row.
    """

    train: Int[np.ndarray, " rows"]
    test: Int[np.ndarray, " tested"]
    train_labels: Int[np.ndarray, " rows"]
    test_labels: Int[np.ndarray, " tested"]


def trained_probes(
    vectors: Float[np.ndarray, "texts d_in"],
    rows: Sequence[ProbedRows],
    seeds: Sequence[int],
    training: ProbeTraining | None = None,
) -> list[Probe]:
    """Return linear probes, each of the epoch after which most of its test rows were right, as SAEBench trains them.

    So their accuracy on test rows is a little too high. All are trained at once: AdamW treats each weight by itself.

    Args:
        vectors: mean activations of texts.
        rows: of each probe, as many as of the others.
        seeds: of each probe's first weights and order of rows.
        training: SAEBench's if None.
    """
    training = training or ProbeTraining()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.from_numpy(vectors).float()
    train, test = (torch.from_numpy(np.stack([getattr(own, part) for own in rows])) for part in ("train", "test"))
    labels = torch.from_numpy(np.stack([own.train_labels for own in rows])).float()
    right = torch.from_numpy(np.stack([own.test_labels for own in rows])) == 1
    # PyTorch's own first weights of a linear layer.
    bound, d_in = x.shape[1] ** -0.5, x.shape[1]
    first = torch.stack([(torch.rand(d_in + 1, generator=each) * 2 - 1) * bound for each in generators])
    weights, biases = first[:, :-1, None].clone().requires_grad_(), first[:, None, -1:].clone().requires_grad_()
    optimiser = torch.optim.AdamW([weights, biases], lr=training.learning_rate)
    best, kept = torch.full((len(rows),), -1.0), first.clone()
    for _ in range(training.epochs):
        orders = torch.stack([torch.randperm(train.shape[1], generator=each) for each in generators])
        for batch in orders.split(training.batch_size, dim=1):
            logits = (x[train.gather(1, batch)] @ weights + biases).squeeze(-1)
            losses = F.binary_cross_entropy_with_logits(logits, labels.gather(1, batch), reduction="none")
            loss = losses.mean(1).sum() + training.l1 * weights.abs().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            accuracies = ((x[test] @ weights + biases > 0).squeeze(-1) == right).float().mean(1)
            better = accuracies > best
            best[better] = accuracies[better]
            kept[better] = torch.cat([weights.squeeze(-1), biases.squeeze(-1)], dim=1)[better]
    found = []
    for own, each in zip(rows, kept.double().numpy(), strict=True):
        reached = auc(vectors[own.train] @ each[:-1], own.train_labels)
        found.append(Probe(each[:-1], float(each[-1]), 1.0, reached))
    return found


@dataclass(frozen=True, eq=False)
class DecodedTexts:
    """Mean activations and mean codes of texts, and the directions for which the codes stand.

    A decoder is affine, and the error is added back. So a text's mean activation without some latents is its mean
    activation minus their mean codes times their directions, and no token has to be decoded again.

    Attributes:
        vectors: (texts, d_in) means over tokens.
        codes: (texts, d_sae) means over tokens.
        directions: (d_sae, d_in) of the decoder.
    """

    vectors: Float[np.ndarray, "texts d_in"]
    codes: "csr_array"
    directions: Float[np.ndarray, "d_sae d_in"]

    def effects(self, probe: Probe, rows: ProbedRows, one_sided: bool) -> Float[np.ndarray, " d_sae"]:
        """Return the effect of each latent on a probe: how far its mean code differs, times its part in the logit.

        Args:
            probe: the probe.
            rows: of the probe; the training rows are read.
            one_sided: whether only latents that are on more for class 1 have an effect, with its sign (TPP); otherwise
                the size of the effect counts (SCR).
        """
        differences = mean_differences(self.codes[rows.train], rows.train_labels)
        logits = self.directions @ probe.weights
        return differences.clip(0) * logits if one_sided else np.abs(differences * logits)

    def accuracies(
        self, probe: Probe, rows: ProbedRows, order: Int[np.ndarray, " latents"], counts: Sequence[int]
    ) -> Float[np.ndarray, " counts"]:
        """Return a probe's accuracy on its test rows without the first latents of an order, for each count."""
        added = self.directions[order] @ probe.weights
        ablated = np.arange(len(order))[:, None] < np.asarray(counts)
        removed = self.codes[rows.test][:, order] @ (added[:, None] * ablated)
        logits = probe.scores(self.vectors[rows.test])[:, None] - removed
        return ((logits > 0) == (rows.test_labels == 1)[:, None]).mean(0)


def strongest(effects: Float[np.ndarray, " d_sae"], count: int) -> Int[np.ndarray, " latents"]:
    """Return the latents with the largest effects, the largest first; fewer if fewer have a positive one."""
    order = np.argsort(-effects, kind="stable")[:count]
    return order[effects[order] > 0]


@dataclass(frozen=True, eq=False)
class Task:
    """Texts and their probes.

    Attributes:
        name: of the task.
        texts: the texts.
        rows: for each repeat, the rows of each probe by its name.
    """

    name: str
    texts: Sequence[str]
    rows: Sequence[Mapping[str, ProbedRows]]


# Scores of one repeat, for each number of ablated latents.
Score = Callable[
    [DecodedTexts, Mapping[str, Probe], Mapping[str, ProbedRows]], Mapping[str, Float[np.ndarray, " counts"]]
]
# By the name of a score, (repeats, counts) for each task.
Scores = dict[str, list[Float[np.ndarray, "repeats counts"]]]


def ablated_scores(
    subject: Subject, tasks: Sequence[Task], score: Score, reading: Reading, seed: int
) -> list[dict[str, Scores]]:
    """Return the scores of each autoencoder, under "", and of random directions of equal density, under "random".

    The language model and the probes are shared by all autoencoders. A dictionary that is dead on a task's texts has
    no control there.

    Args:
        subject: the autoencoders.
        tasks: texts and rows of probes.
        score: of one repeat.
        reading: how texts are read.
        seed: of the probes and of the control.

    Raises:
        ValueError: a text has no token.
    """
    text = subject.source.text
    assert text is not None
    read = [text_activations(text, each.texts, reading, f"reading {each.name}", subject.heartbeat) for each in tasks]
    found: list[dict[str, Scores]] = [{} for _ in subject.autoencoders]
    repeats = sum(len(task.rows) for task in tasks)
    progress = Progress("ablating latents", repeats * (1 + 2 * len(found)), "steps")
    for task, activations in zip(tasks, read, strict=True):
        vectors = mean_vectors(activations).astype(np.float64)
        every = [(repeat, name) for repeat, of_repeat in enumerate(task.rows) for name in of_repeat]
        with one_core():
            trained = trained_probes(
                vectors,
                [task.rows[repeat][name] for repeat, name in every],
                [seed_of(seed, task.name, repeat, name) for repeat, name in every],
            )
        probes: list[dict[str, Probe]] = [{} for _ in task.rows]
        for (repeat, name), probe in zip(every, trained, strict=True):
            probes[repeat][name] = probe
        progress.advance(len(task.rows))
        subject.heartbeat()
        for own, autoencoder in zip(found, subject.autoencoders, strict=True):
            codes = token_codes(autoencoder, activations, subject.heartbeat)
            columns = {"": decoded(autoencoder, activations, vectors, codes)}
            control = random_directions(autoencoder, densities_in(codes), activations.vectors, seed)
            if control is not None:
                columns["random"] = decoded(control, activations, vectors, token_codes(control, activations))
            for name, each in columns.items():
                scores = []
                for of_repeat, rows in zip(probes, task.rows, strict=True):
                    scores.append(score(each, of_repeat, rows))
                    progress.advance(1)
                    subject.heartbeat()
                for kind in scores[0]:
                    kept = own.setdefault(name, {}).setdefault(kind, [])
                    kept.append(np.array([each[kind] for each in scores], dtype=float))
    progress.close()
    return found


def check_counts(key: str, counts: Sequence[int], subject: Subject) -> None:
    """Check that each dictionary has as many latents as are ablated.

    Raises:
        ValueError: a dictionary has fewer.
    """
    least = min(each.d_sae for each in subject.autoencoders)
    if max(counts) > least:
        fitting = ",".join(str(each) for each in counts if each <= least)
        raise ValueError(
            f"eval.{key}.n has {max(counts)}, and the dictionary has {least} latents; set eval.{key}.n=[{fitting or 1}]"
        )


def ablation_meanings(key: str) -> dict[str, Meaning]:
    """Return the meanings of a score's numbers, each with the audit's warning."""
    found: dict[str, Meaning] = {}
    for count in NAMED:
        says = f"{key.upper()}, n={count}; failed tests of noise, truth, ranking (arXiv 2605.18229)"
        meaning = Meaning(says, shown=Shown.files)
        found |= accompanied(f"{key}_n{count}", meaning, {"random": "random directions"})
    return found


def ablation_numbers(key: str, counts: Sequence[int], found: Mapping[str, Scores]) -> dict[str, float]:
    """Return one autoencoder's numbers: means over tasks and repeats, and the noise over repeats."""
    numbers: dict[str, float] = {}
    for control, scores in found.items():
        per_repeat = np.mean(scores[key], axis=0)
        for count, own in zip(counts, per_repeat.T, strict=True):
            if count not in NAMED:
                continue
            name = f"{key}_n{count}"
            numbers |= {f"{name}_{control}": float(own.mean())} if control else mean_and_noise(name, own)
    return numbers


def by_task(
    tasks: Sequence[Task], counts: Sequence[int], found: Mapping[str, Scores]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return each task's scores by the number of ablated latents, means over repeats."""
    return {
        task.name: {
            kind: {str(count): round(float(value), 6) for count, value in zip(counts, own[place].mean(0), strict=True)}
            for kind, own in found[""].items()
        }
        for place, task in enumerate(tasks)
    }


def decoded(
    autoencoder: Autoencoder,
    activations: TextActivations,
    vectors: Float[np.ndarray, "texts d_in"],
    codes: "csr_array",
) -> DecodedTexts:
    """Return the texts as a dictionary decodes them.

    Args:
        autoencoder: the dictionary.
        activations: of the texts.
        vectors: their means.
        codes: of every token.
    """
    directions = autoencoder.W_dec.detach().double().cpu().numpy()
    return DecodedTexts(vectors, pooled(codes, activations, Pooling.mean), directions)
