"""What a set of runs compares: which settings are constant, which vary, and which of them play which part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import pandas as pd

from fsae.analysis.numbers import shown
from fsae.analysis.runs import HISTOGRAM, IDENTITY, MEASURED
from fsae.outputs.bookkeeping import is_bookkeeping

THETA = "loss.penalty.weight"
# Settings that change how many latents are active. Which of them a run has depends on its architecture.
SPARSITY = ("loss.sparsity.weight", "loss.sparsity.target", "arch.k")
# Settings that say how large an autoencoder is.
SIZE = ("arch.d_sae", "arch.expansion", "arch.rank")
# What is drawn anew where nothing else changes.
REPLICATES = ("seed", "source.seed")
# Settings that decide numbers, or name them, and are still no condition of a comparison of training runs.
NOT_COMPARED = ("name", "task", "sae.path")
# What a reader looks for first in a condition's name, and what it is called there.
FIRST = {"model.name": "model", "site.name": "site", "site.layer": "layer", "dataset.name": "dataset"}

NEEDED = ("eval/l0", "eval/fvu")
# States of jobs that never had all of their settings.
PARTLY_KNOWN = ("refused", "not started", "damaged")


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The comparison that finished training runs allow.

    Attributes:
        constant: settings with one value in all of them, as text.
        varied: settings that vary, without those that follow from others.
        follows: settings that vary with the architecture or with one of `varied`.
        conditions: of `varied`, those apart from architecture, Fisher penalty, sparsity and seed.
        cells: one row for each (condition, arch, treatment, sparsity, replicate) with these as columns, `theta` and the
            numbers `eval/<metric>`; runs that repeat one another are averaged. `treatment` is "θ = 0" for the baseline,
            whatever the other settings of a penalty that does not train.
        labels: the same columns for each comparable run, by the index it has among all.
        repeats: runs that repeat another, in all but their name.
    """

    constant: dict[str, str]
    varied: list[str]
    follows: list[str]
    conditions: list[str]
    cells: pd.DataFrame
    labels: pd.DataFrame
    repeats: int

    @property
    def baseline(self) -> str:
        """The treatment without the penalty."""
        return treatment_name(0.0)


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished training runs that were evaluated."""
    kept = (runs["state"] == "finished") & _column(runs, "task", "train").eq("train")
    for name in NEEDED:
        kept &= _column(runs, name, float("nan")).notna()
    return runs.loc[kept]


def design_of(runs: pd.DataFrame) -> Design:
    """The design of the runs that are `comparable`.

    Args:
        runs: as `fsae.analysis.runs` collects them.
    """
    runs = comparable(runs)
    settings = [name for name in runs if _is_setting(name)]
    differing = [name for name in settings if _differs(runs, name)]
    penalised = runs.loc[_theta(runs) > 0]
    treatment = [
        name for name in differing if name.startswith("loss.penalty.") and name != THETA and _differs(penalised, name)
    ]
    parts = {"arch", THETA, *SPARSITY, *REPLICATES, *(n for n in differing if n.startswith("loss.penalty"))}
    known, conditions, follows = (["arch"] if "arch" in runs else []), [], []
    rest = [name for name in differing if name not in parts]
    for name in sorted(rest, key=lambda name: (list(FIRST).index(name) if name in FIRST else len(FIRST), name)):
        if _follows(runs, name, known):
            follows.append(name)
        else:
            known.append(name)
            conditions.append(name)
    played = ["arch", *conditions, THETA, *treatment, *SPARSITY, *REPLICATES]
    labels = _labels(runs, conditions, treatment, [name for name in SPARSITY if name in differing])
    numbers = [name for name in runs if name.startswith("eval/")]
    cells = pd.DataFrame(labels.join(runs[numbers]).groupby(list(labels), sort=False, as_index=False).mean())
    return Design(
        constant={name: shown(runs[name].iloc[0]) for name in settings if len(runs) and name not in differing},
        varied=[name for name in played if name in differing],
        follows=follows,
        conditions=conditions,
        cells=cells,
        labels=labels,
        repeats=int(labels.duplicated().sum()),
    )


def differing_settings(runs: pd.DataFrame) -> list[str]:
    """The settings that tell these runs apart, whatever became of them, without those that follow from others: the
    architecture first, seeds last."""
    # Of a job that never began only what was asked for is known: that the rest is missing is no difference.
    complete = [state == "finished" for state in runs["state"]]
    if not any(complete):
        complete = [state not in PARTLY_KNOWN for state in runs["state"]]
    texts = {name: [shown(value) for value in runs[name]] for name in runs if _is_setting(name)}
    found: list[str] = []
    for name in sorted(texts, key=_telling):
        has = [known or text != "null" for known, text in zip(complete, texts[name], strict=True)]
        # A key that no complete run has is a word for a group, whose settings are told instead.
        is_word = any(complete) and not any(text != "null" for text in compress(texts[name], complete))
        if is_word or len(set(compress(texts[name], has))) < 2:
            continue
        # It may follow from what all of these have.
        others = [has_it and not known for has_it, known in zip(has, complete, strict=True)]
        leading = [each for each in found if "null" not in compress(texts[each], others)]
        if not _follows(runs.loc[has], name, leading):
            found.append(name)
    return found


def called(name: str) -> str:
    """A setting's key as a column names it: "k" for "arch.k"."""
    return FIRST.get(name) or name.removeprefix("arch.").removeprefix("loss.")


def treatment_name(theta: float, others: Sequence[str] = ()) -> str:
    """How the Fisher penalty of some runs is called."""
    return ", ".join([f"θ = {shown(theta)}", *others])


def named(row: Mapping[str, object], names: Sequence[str], skip_absent: bool = False) -> str:
    """A run's values of these settings, as `name=value`; with `skip_absent` those alone that it has."""
    texts = {name: shown(row[name]) for name in names}
    return ", ".join(
        f"{FIRST.get(name, name)}={text}" for name, text in texts.items() if not (skip_absent and text == "null")
    )


def _is_setting(name: str) -> bool:
    if name in (*IDENTITY, *HISTOGRAM, *NOT_COMPARED) or name.startswith(MEASURED):
        return False
    return not is_bookkeeping(name)


def _telling(name: str) -> tuple[int, str]:
    """What to sort settings by, so that those come first that a reader looks for."""
    first = ["arch", *FIRST, THETA, *SPARSITY, *SIZE]
    if name in first:
        return first.index(name), ""
    groups = ("loss.penalty.", "trainer.")
    place = next((number for number, group in enumerate(groups) if name.startswith(group)), len(groups))
    return len(first) + (9 + REPLICATES.index(name) if name in REPLICATES else place), name


def _theta(runs: pd.DataFrame) -> pd.Series:
    """The penalty's weight; a loss that has no such term does not penalise."""
    return _column(runs, THETA, 0.0).astype(float)


def _column(runs: pd.DataFrame, name: str, otherwise: object) -> pd.Series:
    """A column with `otherwise` where a run has no value; also where no run has one."""
    values = runs[name] if name in runs else [None] * len(runs)
    return pd.Series([otherwise if shown(value) == "null" else value for value in values], runs.index)


def _differs(runs: pd.DataFrame, name: str) -> bool:
    return len({shown(value) for value in runs[name]}) > 1


def _follows(runs: pd.DataFrame, name: str, known: list[str]) -> bool:
    """Whether these settings leave no choice for this one."""
    if not known:
        return False
    leading = list(zip(*(runs[each].map(shown) for each in known), strict=True))
    return len(set(zip(leading, runs[name].map(shown), strict=True))) == len(set(leading))


def _labels(runs: pd.DataFrame, conditions: list[str], treatment: list[str], sparsity: list[str]) -> pd.DataFrame:
    theta = _theta(runs)
    rows: list[dict[str, object]] = runs.to_dict("records")  # pyright: ignore[reportAssignmentType]

    def others(row: dict[str, object]) -> list[str]:
        return [f"{name.removeprefix('loss.penalty.')}={shown(row[name])}" for name in treatment]

    replicates = [name for name in REPLICATES if name in runs]
    return pd.DataFrame(
        {
            "condition": [named(row, conditions) for row in rows],
            "arch": [shown(row.get("arch") or "unknown") for row in rows],
            "theta": theta,
            "treatment": [treatment_name(t, others(row) if t > 0 else ()) for t, row in zip(theta, rows, strict=True)],
            "sparsity": [named(row, sparsity, skip_absent=True) for row in rows],
            "replicate": [named(row, replicates) for row in rows],
        },
        index=runs.index,
        dtype=object,
    ).astype({"theta": float})
