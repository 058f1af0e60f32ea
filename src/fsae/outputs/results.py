"""A run's results: numbers by flat name in `results.json`, and what each of them says."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

# The prefix of held-out numbers' names.
MEASURED = "eval/"
# A share of the held-out variance. If the 0.1 % of vectors with the largest norms hold more, fvu describes only them.
LARGE_TAIL = 0.2


class Better(Enum):
    """The better direction of a number; `neither` if it is not settled, or depends on other numbers."""

    more = "more"
    less = "less"
    neither = "neither"


class Shown(Enum):
    """Places that show a number: every table, a report's table of jobs, or the files alone."""

    first = "first"
    table = "table"
    files = "files"


@dataclass(frozen=True)
class Meaning:
    """Meaning of a number in the results.

    Attributes:
        text: the meaning in a few words.
        unit: the number's unit; "" for a pure number.
        better: its better direction.
        shown: the places that show it.
        noise_of: the number whose noise this one is: its standard deviation over seeds of the evaluation.
        control_of: the number that this one is a control of: the same measured on something that has learned nothing,
            or on something simpler.
    """

    text: str
    unit: str = ""
    better: Better = Better.neither
    shown: Shown = Shown.table
    noise_of: str = ""
    control_of: str = ""

    def __str__(self) -> str:
        return f"{self.text} [{self.unit}]" if self.unit else self.text

    def as_json(self) -> dict[str, str]:
        """Return what `meaning_of` reads."""
        written = asdict(self) | {"better": self.better.value, "shown": self.shown.value}
        return {name: value for name, value in written.items() if value or name == "unit"}


def accompanied(
    name: str, meaning: Meaning, controls: Mapping[str, str] | None = None, noise: bool = True
) -> dict[str, Meaning]:
    """Return the meanings of a number, of its noise and of its controls, which the report shows next to it.

    Args:
        name: of the number; "<name>_noise" is its noise and "<name>_<control>" a control.
        meaning: of the number.
        controls: by name, what each control is measured on, as in "random directions of equal density".
        noise: whether the number has a noise.
    """
    found = {name: meaning}
    if noise:
        text = f"noise of {name} over seeds"
        found[f"{name}_noise"] = Meaning(text, meaning.unit, shown=Shown.files, noise_of=name)
    for control, subject in (controls or {}).items():
        text = f"{name} of {subject}"
        found[f"{name}_{control}"] = Meaning(text, meaning.unit, shown=Shown.files, control_of=name)
    return found


def meaning_of(written: Mapping[str, str]) -> Meaning:
    """Return the meaning that `Meaning.as_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: the text is of something else.
    """
    texts = {name: text for name, text in written.items() if name not in ("better", "shown")}
    return Meaning(**texts, better=Better(written["better"]), shown=Shown(written["shown"]))


def meanings_in(results: Mapping[str, Any]) -> dict[str, Meaning]:
    """Return the meanings in the content of a `results.json`, by flat name, in the order of its evaluations."""
    return {name: meaning_of(written) for name, written in (results.get("meanings") or {}).items()}


def in_order(meanings: Mapping[str, Meaning]) -> list[str]:
    """Return the names in the order in which tables show them: first ones first, otherwise as they come."""
    return sorted(meanings, key=lambda name: list(Shown).index(meanings[name].shown))


def flat_results(scalars: Mapping[str, float], meanings: Mapping[str, Meaning] | None = None) -> dict[str, Any]:
    """Return `eval/<name>` to its value, as strict JSON can hold it.

    A number that is not finite becomes null, and `notes` says under the same name what it was; without such a number
    there are no `notes`. `meanings` says what each number means; without any there is no such entry.
    """
    results: dict[str, Any] = {f"{MEASURED}{name}": value for name, value in scalars.items()}
    notes = {name: f"not finite: {value}" for name, value in results.items() if not math.isfinite(value)}
    results |= dict.fromkeys(notes)
    if notes:
        results["notes"] = notes
    if meanings:
        results["meanings"] = {f"{MEASURED}{name}": meaning.as_json() for name, meaning in meanings.items()}
    return results


def merged(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return earlier results with new ones in their place; numbers that were not measured again stay."""
    notes = {name: note for name, note in (earlier.get("notes") or {}).items() if name not in new}
    notes |= new.get("notes") or {}
    meanings = (earlier.get("meanings") or {}) | (new.get("meanings") or {})
    results = {**earlier, **new}
    for name, content in (("notes", notes), ("meanings", meanings)):
        results.pop(name, None)
        if content:
            results[name] = content
    return results


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a `results.json`; nothing if there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold a run's results ({error!r}); it may be cut off: delete it, and evaluate the run "
            f"again, as in python -m fsae.evaluate {path.parent}"
        ) from error


def results_table(scalars: Mapping[str, float], meanings: Mapping[str, Meaning]) -> str:
    """Return aligned lines of name, value and meaning, in the order of tables, without a newline at the end.

    A number's noise stands behind its value, as in "0.41 ± 0.02", and its controls behind its meaning.
    """
    rows = []
    for name in in_order(meanings):
        meaning = meanings[name]
        if name not in scalars or meaning.noise_of or meaning.control_of:
            continue
        beside = {each: scalars[each] for each in meanings if each in scalars}
        noise = [f" ± {value:.2g}" for each, value in beside.items() if meanings[each].noise_of == name]
        controls = [
            f"{each.removeprefix(f'{name}_')} {value:.3g}"
            for each, value in beside.items()
            if meanings[each].control_of == name
        ]
        text = f"{meaning} ({', '.join(controls)})" if controls else str(meaning)
        rows.append((name, f"{scalars[name]:.4g}{''.join(noise)}", text))
    return "\n".join(_aligned(rows)) if rows else "nothing was measured"


def _aligned(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    rows = list(rows)
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{names}}  {value:>{values}}  {meaning}" for name, value, meaning in rows]
