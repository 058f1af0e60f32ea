"""The choice of evaluations, their order, and their files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.suite import chosen, held_out_samples, measure
from fsae.evaluation.vectors import VectorEvaluation, Vectors
from fsae.outputs.results import Better, Meaning
from fsae.outputs.run_folder import RunFolder
from fsae.sources.in_memory import InMemorySource
from tests.architectures import build, samples


@dataclass(frozen=True, kw_only=True)
class Counting(Evaluation):
    """An evaluation that is known to this file only."""

    size: int = 3

    reads: ClassVar[frozenset[str]] = frozenset({"vectors"})
    meanings: ClassVar[dict[str, Meaning]] = {
        "counted": Meaning("latents that fire", unit="latents", better=Better.more),
        "runs": Meaning("runs that were measured together"),
    }

    @property
    def held_out(self) -> int:
        return self.size

    def measure(self, subject: Subject) -> list[Measured]:
        vectors = subject.found(VectorEvaluation)
        assert vectors is not None
        return [
            Measured(
                [{"counted": float((each.density > 0).sum())} for each in own],
                {"runs": float(len(subject.runs))},
                {"counting_histogram": [1, 2]},
                {"counts.json": {"size": self.size}},
                {"counts.png": _draw},
                folders={"counts/0": _make},
            )
            for own in subject.by_run(vectors)
        ]


@dataclass(frozen=True, kw_only=True)
class Members(Counting):
    """An evaluation of populations only."""

    needs: ClassVar[frozenset[str]] = frozenset({"members"})
    reads: ClassVar[frozenset[str]] = frozenset()
    meanings: ClassVar[dict[str, Meaning]] = {"alike": Meaning("how alike members are")}


def _draw(picture: Path) -> None:
    picture.write_text("drawn")


def _make(folder: Path) -> None:
    folder.mkdir(parents=True)


VECTORS = Vectors(samples=40, batch_size=20)


def subject(*sizes: int) -> Subject:
    """Runs with so many autoencoders each."""
    x = samples(60, dtype=torch.float32)
    source = InMemorySource(x, x[:40], 0, torch.device("cpu"))
    runs = [
        Examined([build("topk", seed=member, dtype=torch.float32).eval() for member in range(size)], size - 1)
        for size in sizes
    ]
    return Subject(runs, source)


def test_an_evaluation_comes_after_those_that_it_needs_or_reads():
    possible = chosen({"counting": Counting(), "vectors": VECTORS}, frozenset())
    assert list(possible) == ["vectors", "counting"]
    assert held_out_samples(possible) == 40


def test_evaluations_whose_needs_are_not_met_are_left_out_unless_the_command_line_names_them():
    listed = {"vectors": VECTORS, "members": Members()}
    assert list(chosen(listed, frozenset({"members"}))) == ["vectors", "members"]
    assert list(chosen(listed, frozenset())) == ["vectors"]
    with pytest.raises(ValueError, match=r"eval\.members cannot be measured: .* set population\.size to 2 or more, or"):
        chosen(listed, frozenset(), frozenset(listed))
    with pytest.raises(ValueError, match=r"measured: the run trains one autoencoder; leave members out of eval$"):
        chosen(listed, frozenset(), frozenset(listed), trained=True)


def test_a_needed_evaluation_that_is_not_chosen_is_named():
    with pytest.raises(ValueError, match=r"eval\.splice .* needs vectors; add that, as in eval=\[vectors,splice\]$"):
        chosen({"splice": _needing("vectors")}, frozenset(), frozenset({"splice"}))


def test_a_source_can_provide_an_unknown_need():
    with pytest.raises(
        ValueError, match=r"it needs labels; choose a source that provides labels, or leave probing out"
    ):
        chosen({"probing": _needing("labels")}, frozenset(), frozenset({"probing"}))
    assert list(chosen({"probing": _needing("labels")}, frozenset({"labels"}), frozenset({"probing"}))) == ["probing"]


def test_evaluations_that_need_each_other_are_refused():
    with pytest.raises(ValueError, match="the evaluations a, b need each other"):
        chosen({"a": _needing("b"), "b": _needing("a")}, frozenset())


def test_two_numbers_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"eval\.b and eval\.a both report counted"):
        chosen({"a": Counting(), "b": Counting()}, frozenset())


def test_a_run_has_the_numbers_of_its_own_autoencoders():
    evaluations = chosen({"vectors": VECTORS, "counting": Counting()}, frozenset())
    alone, pair = (measure(subject(*sizes), evaluations)[-1] for sizes in ((1,), (1, 2)))
    assert alone.numbers["runs"] == 1
    assert pair.numbers["runs"] == 2
    assert alone.of_each == {}
    # The first member of the pair has the weights of the one alone.
    assert pair.of_each["0/fvu"] == alone.numbers["fvu"]
    assert pair.numbers["fvu"] == (pair.of_each["0/fvu"] + pair.of_each["1/fvu"]) / 2
    assert pair.numbers["best_fvu"] == pair.of_each["1/fvu"]
    assert "best_fvu" not in alone.numbers


def test_everything_that_was_found_is_written(tmp_path: Path):
    (found,) = measure(subject(2), chosen({"vectors": VECTORS, "counting": Counting(size=7)}, frozenset()))
    found.write(RunFolder(tmp_path))
    written = json.loads((tmp_path / "evaluations" / "counting.json").read_text())
    assert written["settings"] == {"size": 7}
    assert written["numbers"] == {"counted": found.numbers["counted"], "runs": 1.0}
    assert [member["counted"] for member in written["members"]] == [
        found.of_each["0/counted"], found.of_each["1/counted"]
    ]  # fmt: skip
    assert written["meanings"]["counted"] == {
        "text": "latents that fire", "unit": "latents", "better": "more", "shown": "table",
    }  # fmt: skip
    assert json.loads((tmp_path / "counts.json").read_text()) == {"size": 7}
    assert (tmp_path / "counts" / "0").is_dir()
    assert (tmp_path / "plots" / "counts.png").read_text() == "drawn"
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"counts.png", "firing.png"}
    assert all(path.suffix == ".png" for path in (tmp_path / "plots").iterdir())
    results = found.results()
    assert results["counting_histogram"] == [1, 2]
    assert results["meanings"]["eval/counted"] == written["meanings"]["counted"]
    assert {name for name in results if name.startswith(("eval/", "data/"))} == found.logged().keys()
    assert all(map(math.isfinite, found.logged().values()))


def test_an_evaluation_that_cannot_measure_stops_no_other(caplog: pytest.LogCaptureFixture):
    class Refusing(Counting):
        meanings: ClassVar[dict[str, Meaning]] = {}

        def measure(self, subject: Subject) -> list[Measured]:
            raise ValueError("too few samples; raise eval.refusing.samples")

    class Needing(Refusing):
        needs: ClassVar[frozenset[str]] = frozenset({"refusing"})

    (found,) = measure(
        subject(1), {"refusing": Refusing(), "needing": Needing(), "vectors": VECTORS, "counting": Counting()}
    )
    assert "counted" in found.numbers
    assert "eval.refusing cannot be measured: too few samples" in caplog.text
    with pytest.raises(ValueError, match=r"^too few samples; .*samples; eval\.needing needs refusing, which was not"):
        found.check()


def test_a_number_without_a_meaning_is_refused():
    class Unexplained(Counting):
        meanings: ClassVar[dict[str, Meaning]] = {}

    with pytest.raises(
        ValueError, match=r"eval\.counting reports counted, runs without a meaning; .* Unexplained\.mea"
    ):
        measure(subject(1), chosen({"vectors": VECTORS, "counting": Unexplained()}, frozenset()))


def test_a_meaning_that_is_plain_text_is_refused_before_anything_is_measured():
    class Plain(Counting):
        meanings: ClassVar[dict[str, Meaning]] = {"counted": "latents that fire"}  # pyright: ignore[reportAssignmentType]

    with pytest.raises(ValueError, match=r"eval\.counting: the meaning of counted is 'latents that fire'; it must be"):
        chosen({"counting": Plain()}, frozenset())


@pytest.mark.parametrize("name", ["meanings", "notes", "evaluated", "numbers", "eval/fvu", "data/held_out_samples"])
def test_content_cannot_take_the_place_of_the_results_own_entries(name: str):
    class Overwriting(Counting):
        def measure(self, subject: Subject) -> list[Measured]:
            return [Measured(content={name: 1}) for _ in subject.runs]

    with pytest.raises(ValueError, match=f"eval.counting has content named {name}, which"):
        measure(subject(1), chosen({"counting": Overwriting()}, frozenset()))


def test_settings_are_written_with_the_names_of_their_choices_at_any_depth(tmp_path: Path):
    @dataclass(frozen=True)
    class Inner:
        better: Better = Better.less

    @dataclass(frozen=True, kw_only=True)
    class Nested(Counting):
        inner: Inner = Inner()
        wanted: tuple[Better, ...] = (Better.more, Better.neither)

    (found,) = measure(subject(1), chosen({"vectors": VECTORS, "counting": Nested()}, frozenset()))
    found.write(RunFolder(tmp_path))
    settings = json.loads((tmp_path / "evaluations" / "counting.json").read_text())["settings"]
    assert settings == {"size": 3, "inner": {"better": "less"}, "wanted": ["more", "neither"]}


def _needing(need: str) -> Evaluation:
    @dataclass(frozen=True, kw_only=True)
    class Needing(Counting):
        needs: ClassVar[frozenset[str]] = frozenset({need})
        reads: ClassVar[frozenset[str]] = frozenset()
        meanings: ClassVar[dict[str, Meaning]] = {}

    return Needing()


def test_a_number_that_one_member_lacks_has_no_mean():
    @dataclass(frozen=True, kw_only=True)
    class Controlled(Members):
        meanings: ClassVar[dict[str, Meaning]] = {"a": Meaning("of all"), "b": Meaning("of the first")}

        def measure(self, subject: Subject) -> list[Measured]:
            return [Measured([{"a": 1.0, "b": 5.0}, {"a": 3.0}])]

    (found,) = measure(subject(2), {"controlled": Controlled()})
    assert found.numbers == {"a": 2.0}
    assert found.of_each == {"0/a": 1.0, "0/b": 5.0, "1/a": 3.0}
