"""The design of a set of runs: the settings that are constant or vary, and the role of each in a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import pandas as pd

from fsae.analysis.numbers import shown
from fsae.analysis.runs import HISTOGRAM, IDENTITY, MEASURED_GROUPS
from fsae.outputs.bookkeeping import is_bookkeeping

THETA = "loss.penalty.weight"
# Settings that change how many latents are active. A run's architecture determines which of them it has.
SPARSITY = ("loss.sparsity.weight", "loss.sparsity.target", "arch.k")
# Settings that determine the size of an autoencoder.
SIZE = ("arch.d_sae", "arch.expansion", "arch.rank")
# Seeds: settings that repeat a run with other random numbers.
REPLICATES = ("seed", "source.seed")
# Settings that decide numbers, or name them, but are no condition in a comparison of training runs.
NOT_COMPARED = ("name", "task", "sae.path")
# Settings that a reader looks for first in a condition's name, and their names there.
FIRST = {"model.name": "model", "site.name": "site", "site.layer": "layer", "dataset.name": "dataset"}

NEEDED = ("eval/l0", "eval/fvu")
# States of jobs whose settings are not all known.
PARTLY_KNOWN = ("refused", "not started", "damaged")


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The comparison that a set of finished training runs allows.

    Attributes:
        constant: settings with one value in all runs, as text.
        varied: settings that vary, without those that follow from others.
        follows: settings that vary with the architecture or with one of `varied`.
        conditions: the varied settings other than architecture, penalty, sparsity and seed.
        cells: one row per (condition, arch, treatment, sparsity, replicate) with these as columns, `theta` and the
            numbers `eval/<metric>`; runs that repeat one another are averaged. `treatment` is "θ = 0" for the baseline,
            whatever the other settings of a penalty without weight.
        labels: the same columns for each comparable run, by the run's index among all.
        repeats: number of runs that repeat another in everything but their name.
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
        """Return the name of the treatment without the penalty."""
        return treatment_name(0.0)


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the finished training runs that were evaluated."""
    kept = (runs["state"] == "finished") & _column(runs, "task", "train").eq("train")
    for name in NEEDED:
        kept &= _column(runs, name, float("nan")).notna()
    return runs.loc[kept]


def design_of(runs: pd.DataFrame) -> Design:
    """Return the design of the runs that are `comparable`.

    Args:
        runs: the table from `fsae.analysis.runs`.
    """
    runs = comparable(runs)
    settings = [name for name in runs if _is_setting(name)]
    differing = [name for name in settings if _differs(runs, name)]
    penalised = runs.loc[_theta(runs) > 0]
    treatment = [
        name
        for name in differing
        if f"{name}.".startswith("loss.penalty.") and name != THETA and _differs(penalised, name)
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
    """Return the settings that distinguish these runs, in any state, without those that follow from others; the
    architecture comes first, seeds last."""
    # For a job that never started only the requested settings are known: the missing ones are no difference.
    complete = [state == "finished" for state in runs["state"]]
    if not any(complete):
        complete = [state not in PARTLY_KNOWN for state in runs["state"]]
    texts = {name: [shown(value) for value in runs[name]] for name in runs if _is_setting(name)}
    found: list[str] = []
    for name in sorted(texts, key=_telling):
        has = [known or text != "null" for known, text in zip(complete, texts[name], strict=True)]
        # A key that no complete run has names a choice of a group; the group's settings are listed instead.
        is_word = any(complete) and not any(text != "null" for text in compress(texts[name], complete))
        if is_word or len(set(compress(texts[name], has))) < 2:
            continue
        # It may follow from settings that all of these runs have.
        others = [has_it and not known for has_it, known in zip(has, complete, strict=True)]
        leading = [each for each in found if "null" not in compress(texts[each], others)]
        if not _follows(runs.loc[has], name, leading):
            found.append(name)
    return found


def called(name: str) -> str:
    """Return a setting's key as a column's heading: "k" for "arch.k"."""
    return FIRST.get(name) or name.removeprefix("arch.").removeprefix("loss.")


def treatment_name(theta: float, others: Sequence[str] = ()) -> str:
    """Return the name of a treatment: the penalty's weight and its other settings."""
    return ", ".join([f"θ = {shown(theta)}", *others])


def named(row: Mapping[str, object], names: Sequence[str], skip_absent: bool = False) -> str:
    """Return a run's values of these settings as `name=value`; with `skip_absent`, only those that it has."""
    texts = {name: shown(row[name]) for name in names}
    return ", ".join(
        f"{FIRST.get(name, name)}={text}" for name, text in texts.items() if not (skip_absent and text == "null")
    )


def _is_setting(name: str) -> bool:
    if name in (*IDENTITY, *HISTOGRAM, *NOT_COMPARED) or name.startswith(MEASURED_GROUPS):
        return False
    return not is_bookkeeping(name)


def _telling(name: str) -> tuple[int, str]:
    """Return a sort key of settings that puts first what a reader looks for first."""
    first = ["arch", *FIRST, THETA, *SPARSITY, *SIZE]
    if name in first:
        return first.index(name), ""
    groups = ("loss.penalty.", "trainer.")
    place = next((number for number, group in enumerate(groups) if name.startswith(group)), len(groups))
    return len(first) + (9 + REPLICATES.index(name) if name in REPLICATES else place), name


def _theta(runs: pd.DataFrame) -> pd.Series:
    """Return the penalty's weight, 0 for a loss without the term."""
    return _column(runs, THETA, 0.0).astype(float)


def _column(runs: pd.DataFrame, name: str, otherwise: object) -> pd.Series:
    """Return a column with `otherwise` for runs without a value; also if no run has the column."""
    values = runs[name] if name in runs else [None] * len(runs)
    return pd.Series([otherwise if shown(value) == "null" else value for value in values], runs.index)


def _differs(runs: pd.DataFrame, name: str) -> bool:
    return len({shown(value) for value in runs[name]}) > 1


def _follows(runs: pd.DataFrame, name: str, known: list[str]) -> bool:
    """Return whether the known settings determine this one."""
    if not known:
        return False
    leading = list(zip(*(runs[each].map(shown) for each in known), strict=True))
    return len(set(zip(leading, runs[name].map(shown), strict=True))) == len(set(leading))


def _labels(runs: pd.DataFrame, conditions: list[str], treatment: list[str], sparsity: list[str]) -> pd.DataFrame:
    theta = _theta(runs)
    rows: list[dict[str, object]] = runs.to_dict("records")  # pyright: ignore[reportAssignmentType]

    def others(row: dict[str, object]) -> list[str]:
        return [f"{name.removeprefix('loss.').removeprefix('penalty.')}={shown(row[name])}" for name in treatment]

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
