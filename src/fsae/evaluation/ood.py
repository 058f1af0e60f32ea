"""`ood`: whether probes of latents hold in data of another kind than they were fitted to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.evaluation.downstream.answerability import DOMAINS, answerability
from fsae.evaluation.downstream.controls import bag_of_words, densities_in, random_directions
from fsae.evaluation.downstream.k_sparse import KSparse, difference_probe, residual_probe, words_probe
from fsae.evaluation.downstream.labelled_evaluation import LabelledEvaluation
from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.evaluation.downstream.latent_scores import aucs
from fsae.evaluation.downstream.packaged_texts import packaged_texts, shifted_names, shifted_texts
from fsae.evaluation.downstream.probe import Probe, auc, one_core
from fsae.evaluation.downstream.splits import Split, split
from fsae.evaluation.downstream.text_activations import Positions, Reading, TextActivations, joined, text_activations
from fsae.evaluation.downstream.text_codes import mean_vectors, token_codes
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.kept import keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress, working
from fsae.seeds import seed_of

if TYPE_CHECKING:
    from fsae.evaluation.downstream.probe import Columns

# The numbers of latents of a probe; the best latent by itself is a row of its own.
COUNTS = (5, 20)
_ROWS = ("latent", *(f"k{k}" for k in COUNTS))
_OF_K = {"random": "random directions", "neurons": "dimensions at the site"}
_OF_ALL = {
    "residual": "all dimensions at the site",
    "difference": "the difference of means",
    "words": "a bag of words",
}
_FAMILIES = ("shifted", "answerable")
# What is averaged over the domains.
_PLACES = {"": "other domains", "_in": "the probe's own domain", "_worst": "the worst other domain"}


@dataclass(frozen=True, eq=False)
class _Family:
    """Domains in which one question is asked.

    Attributes:
        name: of the family.
        domains: their texts, with equal classes.
        sources: the domains to which probes are fitted.
    """

    name: str
    domains: Sequence[LabelledTexts]
    sources: Sequence[int]


# A function from the columns of any domain to scores, fitted to the training rows of one.
_Scorer = Callable[["Columns"], np.ndarray]


def _meanings() -> dict[str, Meaning]:
    found: dict[str, Meaning] = {}
    for family in _FAMILIES:
        for place, where in _PLACES.items():
            for row in _ROWS:
                shown = Shown.table if (place, row) == ("", "k20") else Shown.files
                meaning = Meaning(f"area under ROC in {where}", better=Better.more, shown=shown)
                controls = _OF_K | (_OF_ALL if row == "k20" else {})
                found |= accompanied(f"ood_{family}{place}_{row}", meaning, controls)
    return found


@dataclass(frozen=True, kw_only=True)
class Ood(LabelledEvaluation, group="eval.ood"):
    """Probes of latents out of their domain (Kantamneni et al. 2025, arXiv 2502.16681; Heindrich et al. 2025,
    arXiv 2502.19964).

    A probe is fitted to one domain and scored in each: in the source's own test rows, and in rows of other domains. The
    sign is that of the source: an area below 0.5 elsewhere stays below.

    Two families of domains: eight data sets of sae-probes with a shifted version each (other languages, spelling,
    characters of fiction), and questions with and without an answer in four domains that templates make, balanced in
    length, each of them a source for the other three.

    Rows: the best latent by its area on the source; 5 and 20 latents by their normalised difference of means, with an
    L1 probe. The residual stream, the difference of means and a bag of words are compared with the 20 latents.

    Attributes:
        shifted: data sets of sae-probes with a shifted version; empty for all eight.
        domains: domains of answerability; empty for all four.
        train, test: rows of a domain; a shifted version has 300.
        seed: of the templates, the rows, the splits and the control.
    """

    shifted: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = _meanings()

    def __post_init__(self):
        super().__post_init__()
        unknown = [each for each in self.domains if each not in DOMAINS]
        if unknown:
            raise ValueError(f"eval.ood.domains has {unknown[0]!r}; the domains are {', '.join(DOMAINS)}")
        if len(self.domains) == 1:
            raise ValueError("eval.ood.domains has one domain; name another one, because the first needs a target")

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and each family's areas by source and target.

        Raises:
            ValueError: a data set is not there.
        """
        text = subject.source.text
        assert text is not None
        keep = keeper(text)
        families = [*self._shifted(), self._answerable()]
        reading = Reading(positions=Positions.last, tokens=self.text_tokens, from_end=True)
        read = [
            [text_activations(text, each.texts, reading, f"reading {each.name}", subject.heartbeat) for each in own]
            for own in (family.domains for family in families)
        ]
        everything = joined([each for own in read for each in own])
        with working("setting thresholds of random directions"):
            dictionaries = []
            for each in subject.autoencoders:
                codes = token_codes(each, everything, subject.heartbeat)
                control = random_directions(each, densities_in(codes), everything.vectors, self.seed)
                dictionaries.append([each] if control is None else [each, control])
        found: list[list[dict[str, np.ndarray]]] = [[] for _ in dictionaries]
        progress = Progress("probing other domains", len(families) * (1 + sum(map(len, dictionaries))), "domains")
        with one_core():
            for family, activations in zip(families, read, strict=True):
                content = {
                    "areas": "eval.ood",
                    "domains": [each.digest for each in family.domains],
                    "sources": list(family.sources),
                    **{name: getattr(self, name) for name in ("train", "test", "text_tokens", "repeats", "seed")},
                    "fit": self.fit.name,
                }
                of_site = _as_arrays(keep(content, partial(self._of_site, family, activations)))
                progress.advance(1)
                for own, pair in zip(found, dictionaries, strict=True):
                    matrices = dict(of_site)
                    for suffix, dictionary in zip(("", "_random"), pair, strict=False):
                        codes = [token_codes(dictionary, each) for each in activations]
                        matrices |= self._of_latents(family, codes, suffix)
                        progress.advance(1)
                        subject.heartbeat()
                    own.append(matrices)
        progress.close()
        numbers = subject.by_run([_numbers(families, own) for own in found])
        matrices = subject.by_run([_matrices(families, own) for own in found])
        return [Measured(own, content={"ood_areas": areas}) for own, areas in zip(numbers, matrices, strict=True)]

    def _shifted(self) -> list[_Family]:
        """Return a family for each data set: itself, which is the source, and its shifted version."""
        count = self.train + self.test
        return [
            _Family("shifted", [each(name).sample(count, self.seed) for each in (packaged_texts, shifted_texts)], [0])
            for name in self.shifted or shifted_names()
        ]

    def _answerable(self) -> _Family:
        domains = [answerability(each, self.train + self.test, self.seed) for each in self.domains or DOMAINS]
        return _Family("answerable", domains, range(len(domains)))

    def _of_site(self, family: _Family, activations: Sequence[TextActivations]) -> dict[str, Tensor]:
        """Return the areas of rows that owe nothing to a dictionary, (repeats, sources, targets)."""
        vectors = [mean_vectors(each).astype(np.float64) for each in activations]
        lengths = np.cumsum([0, *map(len, family.domains)])
        bag = bag_of_words([text for each in family.domains for text in each.texts])
        words = [bag[begin:end] for begin, end in pairwise(lengths)]
        found = self._of_latents(family, vectors, "_neurons")
        for name, columns, fitted in (
            ("k20_residual", vectors, residual_probe),
            ("k20_difference", vectors, difference_probe),
            ("k20_words", words, words_probe),
        ):
            found[name] = self._areas(family, columns, partial(_scorer_of_all, fitted=fitted))[0]
        return {name: torch.from_numpy(np.ascontiguousarray(areas)) for name, areas in found.items()}

    def _of_latents(self, family: _Family, columns: Sequence["Columns"], suffix: str) -> dict[str, np.ndarray]:
        areas = self._areas(family, columns, self._scorers)
        return {f"{row}{suffix}": own for row, own in zip(_ROWS, areas, strict=True)}

    def _scorers(self, columns: "Columns", labels: np.ndarray) -> list[_Scorer]:
        """Return the best latent's scores, and those of a probe for each k."""
        areas = aucs(columns, labels)
        best = np.array([np.abs(areas - 0.5).argmax()])
        sign = Probe(np.array([1.0 if areas[best[0]] >= 0.5 else -1.0]), 0.0, 1.0, float(areas[best[0]]))
        probing = KSparse(counts=COUNTS, fit=self.fit, seed=self.seed)
        return [partial(_scored, chosen, probe) for chosen, probe in [(best, sign), *probing.probes(columns, labels)]]

    def _areas(
        self,
        family: _Family,
        columns: Sequence["Columns"],
        scorers: Callable[["Columns", np.ndarray], list[_Scorer]],
    ) -> np.ndarray:
        """Return the areas under the ROC curve, (rows, repeats, sources, targets)."""
        found = []
        for repeat in range(self.repeats):
            splits = [self._split(each, repeat, place in family.sources) for place, each in enumerate(family.domains)]
            tests = [own[each.test] for own, each in zip(columns, splits, strict=True)]
            labels = [own.labels[each.test] for own, each in zip(family.domains, splits, strict=True)]
            for source in family.sources:
                fitted = scorers(columns[source][splits[source].train], splits[source].labels)
                found.append([[auc(each(own), of) for own, of in zip(tests, labels, strict=True)] for each in fitted])
        areas = np.array(found).reshape(self.repeats, len(family.sources), -1, len(family.domains))
        return areas.transpose(2, 0, 1, 3)

    def _split(self, texts: LabelledTexts, repeat: int, is_source: bool) -> Split:
        """Return training and test rows; a domain that is no source is tested on nearly all its rows."""
        train = self.train if is_source else 2
        test = self.test if is_source else len(texts) - 2
        try:
            return split(texts.labels, train, test, seed_of(self.seed, repeat, texts.name) % 2**32)
        except ValueError as error:
            raise ValueError(f"eval.ood: data set {texts.name}: {error}") from error


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: each.numpy() for name, each in tensors.items()}


def _scored(chosen: np.ndarray, probe: Probe, columns: "Columns") -> np.ndarray:
    own = columns[:, chosen]
    return probe.scores(own if isinstance(own, np.ndarray) else own.toarray())


def _scorer_of_all(
    columns: "Columns", labels: np.ndarray, fitted: Callable[["Columns", np.ndarray], Probe]
) -> list[_Scorer]:
    return [fitted(columns, labels).scores]


def _numbers(families: Sequence[_Family], found: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """Return one autoencoder's numbers."""
    numbers: dict[str, float] = {}
    for name in _FAMILIES:
        own = [(family, matrices) for family, matrices in zip(families, found, strict=True) if family.name == name]
        for row in own[0][1] if own else ():
            places = [_places(family, matrices[row]) for family, matrices in own]
            for place in _PLACES:
                # Over the families: the mean, or the worst one.
                over = np.min if place == "_worst" else np.mean
                per_repeat = over([each[place] for each in places], axis=0)
                numbers |= mean_and_noise(f"ood_{name}{place}_{row}", per_repeat)
    # The noise of controls has no meaning of its own.
    return {name: value for name, value in numbers.items() if name in Ood.meanings}


def _places(family: _Family, areas: Float[np.ndarray, "repeats sources targets"]) -> dict[str, np.ndarray]:
    """Return for each repeat the mean in other domains and in the own one, and the worst in other domains."""
    own = np.zeros(areas.shape[1:], dtype=bool)
    own[np.arange(len(family.sources)), list(family.sources)] = True
    others = areas[:, ~own]
    return {"": others.mean(1), "_in": areas[:, own].mean(1), "_worst": others.min(1)}


def _matrices(families: Sequence[_Family], found: Sequence[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return each family's areas, means over repeats, by row: a line per source, a column per target."""
    return [
        {
            "domains": [each.name for each in family.domains],
            "sources": [family.domains[each].name for each in family.sources],
            **{row: np.round(areas.mean(0), 4).tolist() for row, areas in matrices.items()},
        }
        for family, matrices in zip(families, found, strict=True)
    ]
