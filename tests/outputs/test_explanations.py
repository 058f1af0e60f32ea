"""The files of explanations."""

from dataclasses import replace
from pathlib import Path

from fsae.outputs.explanations import (
    EXPLANATIONS,
    Explanation,
    Scores,
    explanation_line,
    explanations_folder,
    read_explanations,
    read_summary,
)

SCORES = Scores(balanced_accuracy=0.75, precision=None, recall=1.0, f1=0.5, positives=2, negatives=2, unreadable=1)
FIRST = Explanation(
    latent=3, explanation="é < “words”", model="m", prompts="p", settings="s", weights="w", detection=SCORES,
    control_of=4, control_detection=replace(SCORES, recall=0.0), shown=[5, 6],
    judged=[{"test": "detection", "kind": "top", "context": 7, "position": 1, "own": 1, "control": None}],
)  # fmt: skip


def written(folder: Path, *lines: str) -> Path:
    latents = folder / "latents"
    explanations_folder(latents).mkdir()
    (explanations_folder(latents) / EXPLANATIONS).write_text("\n".join(lines) + "\n")
    return latents


def test_what_is_written_is_read(tmp_path: Path):
    assert read_explanations(written(tmp_path, explanation_line(FIRST)), "w") == {3: FIRST}


def test_the_last_explanation_of_a_latent_counts(tmp_path: Path):
    second = replace(FIRST, explanation="other", model="n")
    assert read_explanations(written(tmp_path, explanation_line(FIRST), explanation_line(second)), "w") == {3: second}


def test_explanations_of_other_weights_are_left_out(tmp_path: Path):
    assert read_explanations(written(tmp_path, explanation_line(FIRST)), "v") == {}


def test_damaged_lines_and_unknown_fields_are_passed_over(tmp_path: Path):
    line = explanation_line(FIRST)
    later = line.replace('"latent": 3', '"latent": 5, "invented": 1')
    latents = written(tmp_path, line[:40], "[]", "{}", '{"detection": 3}', "", later, line)
    assert read_explanations(latents, "w") == {5: replace(FIRST, latent=5), 3: FIRST}


def test_a_run_without_explanations_has_none(tmp_path: Path):
    assert read_explanations(tmp_path / "latents", "w") == {}
    assert read_summary(tmp_path / "latents") is None
