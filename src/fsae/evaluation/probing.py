"""`probing`: how well a few latents predict the labels of texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.code_texts import CODE_TEXTS
from fsae.evaluation.downstream.controls import bag_of_tokens, bag_of_words, densities_in, random_directions
from fsae.evaluation.downstream.hub_texts import HUB_TEXTS, hub_texts
from fsae.evaluation.downstream.k_sparse import KSparse, Protocol, difference_probe, residual_probe, words_probe
from fsae.evaluation.downstream.labelled_evaluation import LabelledEvaluation
from fsae.evaluation.downstream.labelled_texts import LabelledTexts, read_labelled
from fsae.evaluation.downstream.packaged_texts import packaged_names, packaged_texts
from fsae.evaluation.downstream.probe import Probe, one_core
from fsae.evaluation.downstream.questions import NORMAL, Case, Difficulty, Question, questions_about
from fsae.evaluation.downstream.splits import Split
from fsae.evaluation.downstream.text_activations import Positions, Reading, TextActivations, joined, text_activations
from fsae.evaluation.downstream.text_codes import Pooling, mean_vectors, pooled, token_codes
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.kept import keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress, working
from fsae.ranges import INNER_SHARE, between
from fsae.sources.documents import DatasetFormat, DatasetSettings

if TYPE_CHECKING:
    from fsae.evaluation.downstream.probe import Columns

# Data sets of sae-probes that are measured by default: short texts and questions of many kinds, most of which a small
# language model answers better than chance at an early layer.
CHOSEN = (
    "5_hist_fig_ismale", "6_hist_fig_isamerican", "7_hist_fig_ispolitician", "21_headline_istrump",
    "23_headline_ischina", "26_headline_isfrontpage", "65_high-school", "70_prime-factors", "73_control-group",
    "92_glue_sst2", "96_spam_is", "105_click_bait", "110_aimade_humangpt3", "122_us_timezone_Los_Angeles",
    "124_world_country_United_States", "125_world_country_Italy", "126_art_type_book", "128_art_type_movie",
    "133_context_type_Causality", "134_context_type_Belief_states", "139_news_class_Politics",
    "149_twt_emotion_happiness", "156_athlete_sport_baseball", "159_code_Python",
)  # fmt: skip
# The values of k that have numbers of their own, and the one that stands for all in other settings.
NAMED = (1, 2, 5, 16, 128)
_MIDDLE = 16
_DIFFICULT = {
    Case.scarce: "few training rows",
    Case.imbalanced: "unequal classes",
    Case.mislabelled: "wrong labels",
}
# Controls that have k columns, too, and those that have all columns.
_OF_K = {"random": "random directions", "neurons": "dimensions at the site"}
_OF_ALL = {
    "residual": "all dimensions at the site",
    "difference": "the difference of means",
    "token": "tokens that were read",
    "words": "a bag of words",
}


class ProbingData(Enum):
    """Data sets of labelled texts.

    Attributes:
        packaged: those of the package sae-probes, of which some are measured by default.
        hub: SAEBench's, and Devign, by name on the hub.
        code: source code of this machine: Python or C by default, and by name Python or Java, and C functions with and
            without a defect.
        files: one data set of your own, in JSON or Parquet files.
    """

    packaged = "packaged"
    hub = "hub"
    code = "code"
    files = "files"


# By name of the columns that a probe reads, (difficulties, repeats, k): one k if it reads all of them.
_Scores = dict[str, np.ndarray]


def _meanings() -> dict[str, Meaning]:
    found: dict[str, Meaning] = {}
    for metric, says in (("auc", "area under ROC"), ("accuracy", "accuracy")):
        for k in NAMED:
            shown = Shown.table if metric == "auc" and k in (1, _MIDDLE) else Shown.files
            meaning = Meaning(f"{says} of probes, k={k}", better=Better.more, shown=shown)
            controls = _OF_K | (_OF_ALL if k == _MIDDLE else {})
            found |= accompanied(f"probing_{metric}_k{k}", meaning, controls)
    for case, data in _DIFFICULT.items():
        meaning = Meaning(f"area under ROC, k={_MIDDLE}, {data}", better=Better.more, shown=Shown.files)
        found |= accompanied(f"probing_auc_{case.name}", meaning, _OF_K | {"residual": _OF_ALL["residual"]})
    return found


@dataclass(frozen=True, kw_only=True)
class Probing(LabelledEvaluation, group="eval.probing"):
    """k-sparse probing (Gurnee et al. 2023; Kantamneni et al. 2025, arXiv 2502.16681; SAEBench, arXiv 2503.09532).

    For each question about texts the k latents whose codes differ most between the classes are chosen on training
    rows, and a logistic regression on these k codes is scored on other rows.

    Attributes:
        data: where the labelled texts come from.
        sets: names of data sets; empty for the chosen ones, [all] for all.
        path: for data=files their folder, file or glob; for data=hub a folder with copies of the data sets, or null.
        text_column, label_column: the columns of data=files.
        protocol: how a text becomes a vector, latents are chosen and probes are scored.
        k: numbers of latents.
        scarce: numbers of training rows that are measured in addition.
        imbalanced: shares of class 1 that are measured in addition.
        mislabelled: shares of wrong labels among training rows that are measured in addition.
        fit: regularisation and solver of protocol=sae_probes.
        text_tokens: tokens of a text that are read: the last ones for protocol=sae_probes, otherwise the first ones.
    """

    data: ProbingData = ProbingData.packaged
    sets: list[str] = field(default_factory=list)
    path: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    protocol: Protocol = Protocol.sae_probes
    k: list[int] = field(default_factory=lambda: list(NAMED), metadata=between(least=1, most=10**6))
    scarce: list[int] = field(default_factory=list, metadata=between(least=2, most=10**9))
    imbalanced: list[float] = field(default_factory=list, metadata=INNER_SHARE)
    mislabelled: list[float] = field(default_factory=list, metadata=between(least=0, below=0.5, meaning="a share"))

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = _meanings()

    def __post_init__(self):
        super().__post_init__()
        if (self.data is ProbingData.files) != (self.path is not None) and self.data is not ProbingData.hub:
            raise ValueError(
                f"eval.probing.path is {self.path!r} with eval.probing.data={self.data.name}; data=files needs a path, "
                "and data=packaged and data=code have none"
            )
        if not self.k:
            raise ValueError("eval.probing.k is empty; name a number of latents, as in eval.probing.k=[1,16]")
        if self._difficulties and (self.protocol is Protocol.saebench or _MIDDLE not in self.k):
            raise ValueError(
                f"eval.probing.{self._difficulties[0][0].name} is measured with {_MIDDLE} latents and "
                f"protocol=sae_probes; add {_MIDDLE} to eval.probing.k and choose that protocol, or set it to []"
            )
        if max(self.scarce, default=0) > self.train:
            raise ValueError(
                f"eval.probing.scarce has {max(self.scarce)}, more than eval.probing.train={self.train}; raise train"
            )

    @property
    def _difficulties(self) -> list[Difficulty]:
        cases = ((Case.scarce, self.scarce), (Case.imbalanced, self.imbalanced), (Case.mislabelled, self.mislabelled))
        return [(case, value) for case, values in cases for value in values]

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers: means over questions, and the noise over splits.

        Raises:
            ValueError: a data set is not there, or has too few texts of a class.
        """
        text = subject.source.text
        assert text is not None
        sets = list(self._sets())
        difficulties = [NORMAL, *self._difficulties]
        try:
            questions = [
                questions_about(each, self.train, self.test, difficulties, self.repeats, self.seed) for each in sets
            ]
        except ValueError as error:
            raise ValueError(
                f"{error}; leave the data set out, or give it more different texts of each class"
            ) from error
        last = self.protocol is Protocol.sae_probes
        reading = Reading(positions=Positions.last if last else Positions.all, tokens=self.text_tokens, from_end=last)
        read = [text_activations(text, each.texts, reading, f"reading {each.name}", subject.heartbeat) for each in sets]
        with working("setting thresholds of random directions"):
            pairs = self._with_controls(subject, joined(read))
        with one_core():
            found = self._scores(subject, sets, questions, read, pairs)
        names = [each.name for own in questions for each in own]
        numbers = subject.by_run([self._numbers(each) for each in found])
        of_sets = subject.by_run([self._by_question(names, each) for each in found])
        return [Measured(own, content={"probing_sets": by_set}) for own, by_set in zip(numbers, of_sets, strict=True)]

    def _scores(
        self,
        subject: Subject,
        sets: Sequence[LabelledTexts],
        questions: Sequence[Sequence[Question]],
        read: Sequence[TextActivations],
        pairs: Sequence[Sequence[Autoencoder]],
    ) -> list[list[_Scores]]:
        """Return the scores of each dictionary for each question."""
        progress = Progress("probing", sum(map(len, questions)) * (1 + 2 * len(pairs)), "probes")
        assert subject.source.text is not None
        keep = keeper(subject.source.text)
        found: list[list[_Scores]] = [[] for _ in pairs]
        for texts, activations, own in zip(sets, read, questions, strict=True):
            content = {"scores": "eval.probing", "texts": texts.digest, **self._of_probes()}
            compute = partial(self._of_site, texts, activations, own, subject.heartbeat)
            of_site = _as_scores(keep(content, compute), len(own))
            progress.advance(len(own))
            for scores, pair in zip(found, pairs, strict=True):
                codes = [self._codes(each, activations) for each in pair]
                for question, shared in zip(own, of_site, strict=True):
                    of_codes = [self._of_latents(each, question) for each in codes]
                    scores.append(shared | dict(zip(("", "random"), of_codes, strict=False)))
                    progress.advance(2)
                    subject.heartbeat()
        progress.close()
        return found

    def _sets(self) -> Iterator[LabelledTexts]:
        """Return the data sets, each with as many texts of every class and no text twice."""
        return (each.sample(self.train + self.test, self.seed) for each in self._found())

    def _found(self) -> Iterator[LabelledTexts]:
        if self.data is ProbingData.packaged:
            yield from map(packaged_texts, packaged_names() if self.sets == ["all"] else self.sets or CHOSEN)
        elif self.data is ProbingData.code:
            for name in CODE_TEXTS if self.sets == ["all"] else self.sets or ["python_or_c"]:
                if name not in CODE_TEXTS:
                    raise ValueError(f"eval.probing.sets has {name!r}; the sets of code are {', '.join(CODE_TEXTS)}")
                yield CODE_TEXTS[name]()
        elif self.data is ProbingData.hub:
            # More than are needed, because a text may occur twice.
            for name in HUB_TEXTS if self.sets in ([], ["all"]) else self.sets:
                yield hub_texts(name, "eval.probing", self.train + self.test, self.path)
        else:
            assert self.path is not None
            yield read_labelled(
                DatasetSettings(
                    format=DatasetFormat.parquet if self.path.endswith(".parquet") else DatasetFormat.json,
                    path=self.path,
                    text_column=self.text_column,
                    label_column=self.label_column,
                ),
                "eval.probing",
            )

    def _with_controls(self, subject: Subject, texts: TextActivations) -> list[list[Autoencoder]]:
        """Return each dictionary and its control; a dictionary that is dead on these texts has none."""
        found = []
        for each in subject.autoencoders:
            codes = token_codes(each, texts, subject.heartbeat)
            control = random_directions(each, densities_in(codes), texts.vectors, self.seed)
            found.append([each] if control is None else [each, control])
            subject.heartbeat()
        return found

    @property
    def _probing(self) -> KSparse:
        return KSparse(protocol=self.protocol, counts=self.k, fit=self.fit, seed=self.seed)

    def _codes(self, dictionary: Autoencoder, activations: TextActivations) -> "Columns":
        codes = token_codes(dictionary, activations)
        return codes if self.protocol is Protocol.sae_probes else pooled(codes, activations, Pooling.mean)

    def _of_probes(self) -> dict[str, Any]:
        """Return the settings on which scores of given texts depend, as JSON."""
        names = {each.name for each in fields(self)} - {"data", "sets", "path", "text_column", "label_column"}
        values = {name: getattr(self, name) for name in sorted(names)}
        return {name: each.name if isinstance(each, Enum) else each for name, each in values.items()}

    def _of_site(
        self,
        texts: LabelledTexts,
        activations: TextActivations,
        questions: Sequence[Question],
        heartbeat: Callable[[], None],
    ) -> dict[str, Tensor]:
        """Return for each question the scores that owe nothing to a dictionary, by its number and their name."""
        vectors = mean_vectors(activations).astype(np.float64)
        tokens, words, of_all = bag_of_tokens(activations), bag_of_words(texts.texts), self._probing.of_all
        probes: dict[str, tuple[Columns, Callable[[Columns, np.ndarray], Probe]]] = {
            "residual": (vectors, residual_probe),
            "difference": (vectors, difference_probe),
            "token": (tokens, words_probe),
            "words": (words, words_probe),
        }
        found: dict[str, Tensor] = {}
        for number, question in enumerate(questions):
            scores = {"neurons": self._of_latents(vectors, question)}
            for name, (columns, fitted) in probes.items():
                scores[name] = _per_split(columns, question, partial(of_all, fitted=fitted))
            found |= {f"{number} {name}": torch.from_numpy(each) for name, each in scores.items()}
            heartbeat()
        return found

    def _of_latents(self, columns: "Columns", question: Question) -> np.ndarray:
        return _per_split(columns, question, self._probing.of_latents)

    def _numbers(self, questions: Sequence[_Scores]) -> dict[str, float]:
        """Return the numbers of one autoencoder."""
        difficulties = [NORMAL, *self._difficulties]
        numbers: dict[str, float] = {}
        for columns in questions[0]:
            # (difficulties, repeats, k), averaged over questions.
            scores = np.mean([each[columns] for each in questions], axis=0)
            for case in dict.fromkeys(each for each, _ in difficulties):
                own = scores[[place for place, (each, _) in enumerate(difficulties) if each is case]].mean(0)
                for name, per_repeat in zip(self._names(case, columns), own.T, strict=True):
                    numbers |= mean_and_noise(name, per_repeat)
        return {name: value for name, value in numbers.items() if name in self.meanings}

    def _names(self, case: Case, columns: str) -> list[str]:
        """Return the name of the number for each k; "" for a k that has no number in this case."""
        metric, suffix = self.protocol.metric, f"_{columns}" if columns else ""
        of_all = f"probing_{metric}_{f'k{_MIDDLE}' if case is Case.normal else case.name}{suffix}"
        if columns in _OF_ALL:
            return [of_all]
        if case is Case.normal:
            return [f"probing_{metric}_k{k}{suffix}" for k in self.k]
        return [of_all if k == _MIDDLE else "" for k in self.k]

    def _by_question(self, names: Sequence[str], questions: Sequence[_Scores]) -> dict[str, dict[str, Any]]:
        """Return each question's scores, means over repeats: a curve over k, or one value for all columns."""
        difficulties = ["normal", *(f"{case.name} {value:g}" for case, value in self._difficulties)]
        return {
            name: {
                columns or "latents": dict(zip(difficulties, np.round(scores.mean(1), 4).tolist(), strict=True))
                for columns, scores in each.items()
            }
            for name, each in zip(names, questions, strict=True)
        }


def _per_split(
    columns: "Columns", question: Question, score: Callable[["Columns", np.ndarray, Split], list[float]]
) -> np.ndarray:
    """Return (difficulties, repeats, k)."""
    own = columns[question.rows]
    return np.array([[score(own, question.labels, each) for each in splits] for splits in question.splits.values()])


def _as_scores(tensors: Mapping[str, Tensor], questions: int) -> list[_Scores]:
    found: list[_Scores] = [{} for _ in range(questions)]
    for key, tensor in tensors.items():
        number, _, name = key.partition(" ")
        found[int(number)][name] = tensor.numpy()
    return found
