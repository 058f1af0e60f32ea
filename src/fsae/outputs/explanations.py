"""Explanations of latents, and their scores: the files that `fsae.latents --explain` writes.

They are next to the latent store, in `latents.explanations` (`explanations_folder`): the store is replaced as a whole
when it is made again, and answers cost money.

explanations.jsonl   a line per explained latent, in the order in which they were finished; `Explanation`
answers.jsonl        a line per answer of the model: the digest of the question, and the answer
summary.json         means over the latents of the last command, with those of the control
explain.lock         held by the process that writes these files
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

EXPLANATIONS, ANSWERS, SUMMARY, LOCK = "explanations.jsonl", "answers.jsonl", "summary.json", "explain.lock"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of an explanation on one test; a number that its examples do not determine is None.

    Attributes:
        balanced_accuracy: mean of the shares of positives and of negatives that were judged correctly; 0.5 by chance.
        precision: share of the examples judged positive that are positive.
        recall: share of the positives that were judged positive.
        f1: harmonic mean of precision and recall.
        positives: positive examples with a readable answer.
        negatives: negative examples with a readable answer.
        unreadable: examples without a readable answer; the numbers leave them out.
        accuracy: share of the examples that were judged correctly.
    """

    balanced_accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    positives: int
    negatives: int
    unreadable: int
    # Lines of earlier versions lack it.
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The explanation of one latent, and its scores.

    Attributes:
        latent: index of the latent.
        explanation: the text; None if the model's answer had none.
        model: the model that explained and judged.
        prompts: digest of the prompts' template.
        settings: digest of everything else that decides the questions: sizes, seed and data.
        weights: digest of the dictionary, as in the latent store's `meta.json`.
        detection: scores of judging plain excerpts; None without explanation or without examples.
        fuzzing: scores of judging marked tokens.
        selection: scores of naming those of a list of excerpts that fit; None if that was not asked.
        control_of: the latent whose explanation the control judged; None without control.
        control_detection: scores of that explanation on the same excerpts.
        control_fuzzing: scores of that explanation on the same marked tokens.
        control_selection: scores of that explanation on the same list.
        shown: rows of the store's tokens that the explanation was made from.
        judged: a mapping per example: `test`, `kind`, `context` (row of the store's tokens), `position`, and the
            answers `own` and `control` (1, 0, or None if it was unreadable).
    """

    latent: int
    explanation: str | None
    model: str
    prompts: str
    settings: str
    weights: str
    detection: Scores | None = None
    fuzzing: Scores | None = None
    selection: Scores | None = None
    control_of: int | None = None
    control_detection: Scores | None = None
    control_fuzzing: Scores | None = None
    control_selection: Scores | None = None
    shown: list[int] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)

    @property
    def all_scores(self) -> list[Scores]:
        """Return the scores of all tests that were asked, the control's included."""
        return [found for name in _SCORES if (found := getattr(self, name)) is not None]


_SCORES = ("detection", "fuzzing", "selection", "control_detection", "control_fuzzing", "control_selection")


def explanations_folder(latents: Path) -> Path:
    """Return the folder of the explanations that belong to the latent store in `latents`."""
    return latents.with_name(f"{latents.name}.explanations")


def read_explanations(latents: Path, weights: str) -> dict[int, Explanation]:
    """Return the last explanation of each latent of a dictionary; empty if there is none.

    Args:
        latents: folder of the latent store.
        weights: digest of the dictionary, `LatentStore.meta.weights`; explanations of other weights are left out.
    """
    found = explanation_lines(explanations_folder(latents) / EXPLANATIONS)
    return {each.latent: each for each in found if each.weights == weights}


def read_summary(latents: Path) -> dict[str, Any] | None:
    """Return the means of the last command that explained latents; None if there are none."""
    path = explanations_folder(latents) / SUMMARY
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def explanation_lines(path: Path) -> Iterator[Explanation]:
    """Yield the explanations of a file in their order; a line that a kill or another version left is passed over."""
    for content in json_lines(path):
        try:
            yield _explanation(content)
        except (TypeError, AttributeError):
            continue


def explanation_line(explanation: Explanation) -> str:
    """Return the line of a file that holds an explanation, without its end."""
    return json.dumps(asdict(explanation), ensure_ascii=False)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a file of JSON lines; damaged lines are passed over, and a missing file has none."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content


def _explanation(content: Mapping[str, Any]) -> Explanation:
    known = {each.name for each in fields(Explanation)}
    values = {name: value for name, value in content.items() if name in known}
    for name in _SCORES:
        if values.get(name) is not None:
            values[name] = Scores(**values[name])
    return Explanation(**values)
