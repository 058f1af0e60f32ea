"""The generated reference: complete for what there is, and a complaint about whatever is not described."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from docs import reference
from docs.reference import CONF, choices, metrics_page, settings_pages, undocumented, undocumented_parts
from fsae.configuration.schema import schemas
from fsae.evaluation.choices import CHOICES
from fsae.ranges import COUNT
from fsae.training.measures import MEANINGS


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return settings_pages()


def test_everything_is_described():
    assert list(undocumented()) == []


def test_every_choice_is_on_its_groups_page(pages: dict[str, str]):
    for path in CONF.rglob("*.yaml"):
        group, *rest = path.relative_to(CONF).with_suffix("").parts
        if rest and group != "hydra":
            assert f"| `{group}={'/'.join(rest)}` |" in pages[f"reference/settings/{group}.md"]


def test_a_setting_has_its_range_its_default_and_its_meaning(pages: dict[str, str]):
    assert "| `trainer.lr` | number, > 0 | `0.0003` | " in pages["reference/settings/trainer.md"]
    assert "| `arch.k` | whole number, ≥ 1 | " in pages["reference/settings/arch.md"]
    assert "| `source.cache` | `auto`, `disk`, `none` | `auto` | " in pages["reference/settings/source.md"]


def test_every_metric_has_a_row():
    page = metrics_page()
    names = [name for evaluation in CHOICES.values() for name in evaluation.meanings]
    assert all(f"| `eval/{name}` | " in page for name in names)


def test_every_measure_of_training_has_a_row():
    for name, meaning in MEANINGS.items():
        assert f"| `train/{name}` | {meaning.replace('|', chr(92) + '|')} |" in metrics_page()


def test_every_evaluation_is_on_the_page_about_them_with_its_sizes():
    page = (reference.REPOSITORY / "docs" / "evaluate.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `") and "=" not in row}
    assert rows.keys() == CHOICES.keys()
    for name, evaluation in CHOICES.items():
        if (reference.REPOSITORY / "docs" / "evaluations" / f"{name}.md").exists():
            assert f"(evaluations/{name}.md)" in rows[name]
            continue
        sizes = rows[name].rstrip(" |").rpartition("|")[2] if fields(evaluation) else ""
        assert sizes.split("`")[1::2] == [each.name for each in fields(evaluation)]


def test_a_config_group_without_a_line_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(reference.GROUPS, "site")
    with pytest.raises(ValueError, match="no line for the config group site"):
        settings_pages()


def test_a_setting_without_a_meaning_is_reported(monkeypatch: pytest.MonkeyPatch):
    @dataclass(frozen=True, kw_only=True)
    class Undescribed:
        """Settings.

        Attributes:
            known: described, over
                two lines.
        """

        known: int = field(default=1, metadata=COUNT)
        unknown: int = field(default=1, metadata=COUNT)

    monkeypatch.setitem(schemas(), "eval/undescribed", Undescribed)
    (complaint,) = undocumented()
    assert complaint.endswith("the docstring's Attributes do not describe unknown")


def test_a_public_name_without_a_docstring_is_reported():
    def load(path: str) -> None: ...

    def save(path: str) -> None:
        """Save.

        Args:
            path: where.
            folder: an earlier name of path.
        """

    assert list(undocumented_parts("fsae.load", load)) == ["fsae.load has no docstring"]
    assert list(undocumented_parts("fsae.save", save)) == [
        "fsae.save: the docstring describes folder, which is no parameter"
    ]


def test_a_comment_of_several_lines_describes_a_choice(tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.yaml").write_text(
        "# @package _global_\n# One line,\n# and another.\nlayer: 1\n# Not this.\n"
    )
    (choice,) = choices("site", tmp_path)
    assert choice.comment == "One line, and another."
