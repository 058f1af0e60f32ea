import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fsae.analysis.report import write_report
from fsae.analysis.runs import collect_folders
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import Failure, RunState
from tests.analysis.run_folders import results_of, settings_of, write_run, write_sweep
from tests.work import calls


class Page(HTMLParser):
    """The text of a page by section, the cells of its tables, and the addresses that it loads."""

    def __init__(self, file: Path):
        super().__init__()
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.loaded: list[str] = []
        self.unclosed: list[str] = []
        self._section = "head"
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "link", "br"):
            self.unclosed.append(tag)
        if tag == "section":
            self._section = given["id"] or ""
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag == "td":
            self.rows[self._section][-1].append("")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag
        if tag == "section":
            self._section = "after"

    def handle_data(self, data: str) -> None:
        if "td" in self.unclosed:
            self.rows[self._section][-1][-1] += data
        if self.unclosed[-1:] not in (["style"], ["script"]):
            text = self.sections.get(self._section, "")
            self.sections[self._section] = text + " " + re.sub(r"\s+", " ", data)


def page_on(folder: Path) -> Page:
    return Page(write_report(collect_folders([folder]), folder / "report"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, effect=-0.02, noise=0.001)
    failure = Failure(kind="OutOfMemoryError", message="<script>alert(1)</script>")
    write_run(folder / "99", settings_of("gated", 0, 1, 9), None, state=RunState.failed, failure=failure)
    return folder


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are composed and not drawn, since drawing takes most of a report's time."""
    monkeypatch.setattr(Figure, "savefig", lambda self, picture, **_: picture.write_bytes(b"a picture"))


@pytest.fixture(scope="module")
def page(sweep: Path) -> Page:
    return page_on(sweep)


def test_the_page_loads_nothing_from_outside(page: Page):
    assert page.unclosed == []
    outside = [address for address in page.loaded if not address.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    # Five pictures of differences, two fronts, one of bits, three θ-curves, one of densities.
    assert sum(address.startswith("data:") for address in page.loaded) == 12


def test_every_run_is_a_row(page: Page):
    rows = [row for row in page.rows["runs"] if row]
    assert len(rows) == 81
    # The differing settings, fvu and l0 come first; settings and the run's name last.
    assert rows[0][0] == "gated, penalty.weight=0, sparsity.weight=0.5, seed=0"
    assert 0 < float(rows[0][1]) < 1 < float(rows[0][2])
    assert rows[0][-5:] == ["gated", "0", "0.5", "0", "0"]
    assert rows[-1][0] == "gated, penalty.weight=0, sparsity.weight=1, seed=9 failed"


def test_the_page_begins_with_the_jobs(sweep: Path, page: Page):
    sections = list(page.sections)
    assert sections[sections.index("head") + 1] == "runs"
    text = (sweep / "report" / "report.html").read_text()
    marked = re.findall(r"<strong>([\d.]+)</strong>", text)
    runs = collect_folders([sweep])
    # Bold are the lowest fvu and the highest cross-entropy recovered, but no l0, which has no better direction.
    assert f"{runs['eval/fvu'].min():.4g}" in marked
    assert f"{runs['eval/ce_recovered_zero'].max():.4g}" in marked
    assert f"{runs['eval/l0'].min():.4g}" not in marked
    assert f"{runs['eval/l0'].max():.4g}" not in marked


def test_the_verdict_states_the_true_difference(page: Page):
    # A summary, then metric by metric, fvu first.
    rows = [row for row in page.rows["matched"] if len(row) == 7]
    (gated, first), (jumprelu, second), (mean, third) = [(row[0], row[1]) for row in rows[:3]]
    assert (gated, jumprelu, mean) == (
        "gated, θ = 0.01", "jumprelu, θ = 0.01", "all, θ = 0.01mean of the 2 above",
    )  # fmt: skip
    for verdict in (first, second, third):
        found = re.fullmatch(r"lower by (0\.\d+) to (0\.\d+), better \(5 seeds\)", verdict)
        assert found, verdict
        assert float(found[1]) <= 0.02 <= float(found[2])
    assert "lower in 2 of 2; mean: lower by" in page.sections["matched"]


def test_a_number_without_a_place_of_its_own_is_compared_by_its_meaning(page: Page):
    metrics = [row[0] for row in page.rows["matched"] if len(row) == 2]
    assert metrics[0] == "fraction of variance unexplained (fvu)\N{NO-BREAK SPACE}↓"
    assert metrics[5:] == ["share of latents on for more than 10 % of samples (dense_share)\N{NO-BREAK SPACE}↓"]
    # It is the same in every run.
    assert [row[1] for row in page.rows["matched"] if len(row) == 7][-1] == "the same in all 5 pairs"


def test_failures_are_listed_and_escaped(page: Page, sweep: Path):
    (row,) = [row for row in page.rows["failures"] if row]
    assert row == ["99", "OutOfMemoryError: <script>alert(1)</script>", "failed", str(sweep / "99")]
    assert "1 of 81 runs is not compared" in page.sections["head"]


def test_the_written_tables_hold_everything(page: Page, sweep: Path):
    written, collected = pd.read_parquet(sweep / "report" / "runs.parquet"), collect_folders([sweep])
    assert list(written) == list(collected)
    for name in ("folder", "arch", "loss.penalty.weight", "eval/l0"):
        assert written[name].dropna().tolist() == collected[name].dropna().tolist()
    assert list(written["density/latents"][0]) == collected["density/latents"][0]
    assert len(pd.read_csv(sweep / "report" / "runs.csv")) == 81


@pytest.mark.usefixtures("_undrawn")
def test_an_earlier_report_is_replaced(tmp_path: Path):
    write_sweep(tmp_path / "s", archs=["gated"], seeds=[0])
    first = page_on(tmp_path / "s")
    pictures = set((tmp_path / "s" / "report" / "pictures").iterdir())
    again = page_on(tmp_path / "s")
    assert len(again.loaded) == len(first.loaded)
    assert set((tmp_path / "s" / "report" / "pictures").iterdir()) == pictures


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize(
    ("changes", "section", "message"),
    [
        ({"seeds": [0]}, "matched", "too few seeds to say: 1 of at least 3"),
        ({"weights": [1.0, 2.0, 4.0]}, "matched", "Nothing is compared at matched l0: fewer than four sparsities (3)."),
        ({"thetas": [0.01]}, "matched", "there is no baseline: no run has penalty=none or loss.penalty.weight=0"),
        ({"thetas": [0.0]}, "matched", "no run has a penalty: all have penalty=none or loss.penalty.weight=0"),
        ({"weights": [1.0]}, "fronts", "No setting of sparsity varies"),
    ],
)
def test_the_page_states_what_a_sweep_lacks(changes: dict, section: str, message: str, tmp_path: Path):
    write_sweep(tmp_path, **({"archs": ["gated"], "seeds": [0, 1]} | changes))
    assert message in page_on(tmp_path).sections[section]


@pytest.mark.usefixtures("_undrawn")
def test_the_page_gives_the_reasons_if_everything_failed(tmp_path: Path):
    failure = Failure(kind="ValueError", message="no such layer")
    for number in range(2):
        settings = settings_of("gated", 0, 1, number)
        write_run(tmp_path / str(number), settings, None, state=RunState.failed, failure=failure)
    page = page_on(tmp_path)
    assert [row[1] for row in page.rows["failures"] if row] == ["ValueError: no such layer"] * 2
    assert "no run has finished with results" in page.sections["matched"]
    assert not [address for address in page.loaded if address.startswith("data:")]


@pytest.mark.usefixtures("_undrawn")
def test_a_single_run_has_a_report(tmp_path: Path):
    write_run(tmp_path / "r", settings_of("gated", 1, 1, 0), results_of("gated", 1, 1, 0, effect=0, noise=0))
    page = page_on(tmp_path / "r")
    assert [row[0] for row in page.rows["runs"] if row] == ["r"]
    # A single run is compared with nothing.
    assert set(page.sections) == {"head", "runs", "density", "settings", "after"}


@pytest.mark.usefixtures("_undrawn")
def test_a_run_of_a_crosscoder_shows_its_relative_norms(tmp_path: Path):
    write_run(tmp_path / "r", settings_of("gated", 1, 1, 0), results_of("gated", 1, 1, 0, effect=0, noise=0))
    plots = RunFolder(tmp_path / "r").plots
    plots.mkdir(exist_ok=True)
    (plots / "relative_norms.png").write_bytes(b"drawn")
    page = page_on(tmp_path / "r")
    assert " r " in f"{page.sections['relative-norms']} "
    assert "data:image/png;base64,ZHJhd24=" in page.loaded


def test_a_run_links_to_the_pages_of_its_latents(tmp_path: Path):
    runs = tmp_path / "out#puts"
    write_sweep(runs, weights=[1.0], seeds=[0])
    _, one, several, *_ = sorted(runs.iterdir())
    for page in (one / "latents", several / "latents" / "0", several / "latents" / "1"):
        page.mkdir(parents=True)
        (page / "index.html").write_text("")
    file = write_report(collect_folders([runs]), tmp_path / "report")
    links = [link for link in Page(file).loaded if "latents" in link]
    pages = [one / "latents", several / "latents" / "0", several / "latents" / "1"]
    assert [(file.parent / unquote(link)).resolve() for link in links] == [page / "index.html" for page in pages]
    assert re.findall(r">(latents.*?)</a>", file.read_text()) == ["latents", "latents 0", "latents 1"]


def test_odd_numbers_do_not_stop_the_report(tmp_path: Path):
    """No latent is active, one metric is missing everywhere, others are infinite, and there is no histogram."""
    for number, weight in enumerate((1.0, 2.0, 4.0, 8.0, 16.0)):
        for theta in (0.0, 1.0):
            results = results_of("gated", theta, weight, 0, effect=0, noise=0)
            del results["eval/ce_recovered_zero"], results["density_histogram"]
            odd = {"eval/l0": 0.0} if number == 0 else {"eval/dead_share": None} if number == 1 else {}
            settings = settings_of("gated", theta, weight, 0)
            write_run(tmp_path / f"{number}-{theta}", settings, results | odd)
    page = page_on(tmp_path)
    assert "In 2 runs no latent is ever active" in page.sections["head"]
    assert "lack a finite value of dead_share" in page.sections["head"]
    assert "density" not in page.sections


@pytest.mark.usefixtures("_undrawn")
def test_evaluations_and_harvests_are_not_compared(tmp_path: Path):
    write_run(tmp_path / "train", settings_of("gated", 0, 1, 0), results_of("gated", 0, 1, 0, effect=0, noise=0))
    for task, results in (("eval", results_of("gated", 0, 1, 0, effect=0, noise=0)), ("harvest", None)):
        write_run(tmp_path / task, settings_of("gated", 0, 1, 0) | {"task": task}, results)
    page = page_on(tmp_path)
    assert {row[-1] for row in page.rows["runs"] if row} == {"train", "eval", "harvest"}
    assert "failures" not in page.sections


def test_each_condition_has_a_picture_of_bits_with_a_line_per_trainer(tmp_path: Path, figures: list[Figure]):
    for layer, trainer, (latents, share) in itertools.product((0, 5), ("adam", "pam"), ((64, 1), (128, 2))):
        for seed in (0, 1):
            more = {"site.layer": layer, "trainer": trainer, "arch.d_sae": latents}
            more |= {"arch.rank": 15} if latents == 128 else {}
            results = results_of("gated", 0, 1, seed, effect=0, noise=0)
            results |= {"eval/description_length": 50.0 * share, "eval/fvu": 0.4 / share + 0.1 * (trainer == "pam")}
            write_run(
                tmp_path / f"{layer}-{trainer}-{latents}-{seed}", settings_of("gated", 0, 1, seed, **more), results
            )
    page = page_on(tmp_path)
    assert "layer=0, against the bits" in page.sections["fronts"]
    drawn = [figure for figure in figures if figure.axes[0].get_xlabel() == "bits of a sample's codes"]
    assert len(drawn) == 2
    for figure in drawn:
        (axis,), (legend,) = figure.axes, figure.legends
        assert {"θ = 0, trainer=adam", "θ = 0, trainer=pam"} <= {text.get_text() for text in legend.get_texts()}
        # Per trainer four runs are points, and their two means over seeds are labelled.
        assert [np.shape(line.get_xydata()) for line in axis.lines[::2]] == [(4, 2), (4, 2)]
        assert [np.shape(means.get_offsets()) for means in axis.collections] == [(2, 2), (2, 2)]
        assert sorted(text.get_text() for text in axis.texts) == ["128, rank 15", "128, rank 15", "64", "64"]


@pytest.mark.usefixtures("_undrawn")
def test_the_lowest_projection_of_each_curve_is_named(tmp_path: Path):
    for seed, lowest in ((0, 1), (1, 2), (2, 3)):
        for place in range(4):
            results = results_of("gated", 0, 1, seed, effect=0, noise=0) | {"eval/l0": 2.0**place}
            results |= {"eval/decoder_projection": 1.0 + abs(place - lowest)}
            write_run(tmp_path / f"{seed}-{place}", settings_of("gated", 0, place + 1.0, seed), results)
    # Two curves are lowest at l0 2 and 4, and one at its end.
    assert "lowest at l0 (gated, θ = 0: 2-4, 1 curve lowest at an end)" in page_on(tmp_path).sections["fronts"]


@pytest.mark.parametrize(
    ("key", "values", "labels"),
    [
        ("loss.sparsity.weight", (0.1, 0.3, 0.6, 1.15), ["weight=0.1", "weight=0.3", "weight=0.6", "weight=1.15"]),
        ("loss.sparsity.weight", (1e-5, 2.0, -0.5), ["weight=1e-5", "weight=2", "weight=-0.5"]),
        ("loss.sparsity.target", (32.5, 100), ["target=32.5", "target=100"]),
        ("arch.k", (8, 64), ["k=8", "k=64"]),
        ("arch.expansion", (0.5, 16), ["0.5 d_in", "16 d_in"]),
        # A constant setting is no label.
        ("arch.d_sae", (64, 64), ["", ""]),
    ],
)
def test_points_of_bits_are_labelled_by_the_differing_settings(
    key: str, values: tuple[float, ...], labels: list[str], tmp_path: Path, figures: list[Figure]
):
    for number, value in enumerate(values):
        settings = settings_of("gated", 0, 1, 0) | {key: value}
        results = results_of("gated", 0, 1 + number, 0, effect=0, noise=0)
        write_run(tmp_path / "sweep" / str(number), settings, results)
    write_report(collect_folders([tmp_path / "sweep"]), tmp_path / "report")
    drawn = [figure for figure in figures if figure.axes[0].get_xlabel() == "bits of a sample's codes"]
    assert sorted(text.get_text() for text in drawn[0].axes[0].texts) == sorted(filter(None, labels))


def test_names_with_dollar_signs_are_drawn_unchanged(tmp_path: Path, figures: list[Figure]):
    """Read as formulas, "$_1$" lacks a base and "$\\frac$" is invalid, which would end the report."""
    for number, (name, theta, weight) in enumerate(itertools.product(("$_1$", "a$\\frac$b"), (0, 1), (1, 2, 4, 8))):
        settings = settings_of("gated", theta, weight, 0) | {"dataset.name": name, "loss.penalty.form": f"{name}_x"}
        results = results_of("gated", theta, weight, 0, effect=0, noise=0)
        write_run(tmp_path / "sweep" / str(number), settings, results)
    page = write_report(collect_folders([tmp_path / "sweep"]), tmp_path / "report").read_text()
    texts = {text.get_text() for figure in figures for text in figure.findobj(Text)}
    assert any("dataset=$_1$" in text for text in texts)
    assert "dataset=a$\\frac$b" in page


CAVEATS: dict[str, tuple[dict[str, float], str]] = {
    # 65,536 / 4,788 = 13.69.
    "text": (
        {"data/text_rounds": 13.69, "data/train_samples_distinct": 4788, "data/train_samples_wanted": 65536},
        "only 4,788 of 65,536 training samples are distinct, the text was read 14 times over",
    ),
    "held out": ({"data/held_out_samples": 127, "data/held_out_samples_wanted": 8192}, "127 of 8,192"),
    "massive": ({"eval/top_variance_share": 0.89}, "holds 89 % of the variance"),
}
ENOUGH = {
    "data/text_rounds": 1.0, "data/train_samples_distinct": 65536, "data/train_samples_wanted": 65536,
    "data/held_out_samples": 8192, "data/held_out_samples_wanted": 8192, "eval/top_variance_share": 0.2,
}  # fmt: skip


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize("what", CAVEATS)
def test_caveats_name_their_jobs_at_the_top(what: str, tmp_path: Path):
    poor, message = CAVEATS[what]
    for seed in range(4):
        results = results_of("gated", 0, 1, seed, effect=0, noise=0) | ENOUGH | (poor if seed in (1, 3) else {})
        write_run(tmp_path / str(seed), settings_of("gated", 0, 1, seed), results)
    page = page_on(tmp_path)
    assert message in page.sections["head"]
    assert "2 of 4 jobs (seed=1; seed=3)" in page.sections["head"]
    # The amount of data is no setting, so it is no condition.
    assert "data/" not in page.sections["settings"]


@pytest.mark.usefixtures("_undrawn")
def test_a_caveat_names_a_few_jobs_and_none_if_it_holds_for_all(tmp_path: Path):
    short = {"data/held_out_samples": 127.0, "data/held_out_samples_wanted": 8192.0}
    for seed in range(7):
        results = results_of("gated", 0, 1, seed, effect=0, noise=0) | ENOUGH | (short if seed < 6 else {})
        write_run(tmp_path / str(seed), settings_of("gated", 0, 1, seed), results)
    assert "6 of 7 jobs (seed=0; seed=1; seed=2; seed=3; and 2 more)" in page_on(tmp_path).sections["head"]
    (tmp_path / "6" / "results.json").write_text((tmp_path / "5" / "results.json").read_text())
    assert "Too few held-out samples in all 7 jobs: 127 of 8,192" in page_on(tmp_path).sections["head"]


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize("name", ["data/held_out_samples", "eval/fisher_batch"])
def test_runs_measured_on_other_counts_are_reported(name: str, tmp_path: Path):
    for seed, count in enumerate((8192, 8192, 4096)):
        settings = settings_of("gated", 0, 1, seed) | {"eval.vectors.samples": 8192}
        results = results_of("gated", 0, 1, seed, effect=0, noise=0) | {name: count}
        write_run(tmp_path / "measured" / str(seed), settings, results)
        # Neither a run without the number nor the size that the settings name is a difference.
        settings |= {"eval.vectors.samples": count}
        write_run(tmp_path / "named" / str(seed), settings, results if seed == 0 else results | {name: None})
    caution = f"{name.partition('/')[2]} differs between runs: their held-out numbers differ in precision too."
    assert caution in page_on(tmp_path / "measured").sections["head"]
    assert caution not in page_on(tmp_path / "named").sections["head"]


@pytest.mark.usefixtures("_undrawn")
def test_runs_on_changed_files_are_reported(tmp_path: Path):
    for seed, data in enumerate(("3a", "3a", "4b")):
        results = results_of("gated", 0, 1, seed, effect=0, noise=0) | ENOUGH
        settings = settings_of("gated", 0, 1, seed)
        write_run(tmp_path / "same" / str(seed), settings, results, tags={"fsae.data": data})
        # The settings are the same, but the data came from another model's weights.
        other = {"model.name": "another"} if data == "4b" else {}
        write_run(tmp_path / "other" / str(seed), settings | other, results, tags={"fsae.data": data})
    changed = "trained on different text or weights"
    assert changed in page_on(tmp_path / "same").sections["head"]
    assert changed not in page_on(tmp_path / "other").sections["head"]


@pytest.mark.usefixtures("_undrawn")
def test_enough_data_needs_no_caveat(tmp_path: Path):
    for seed in range(2):
        results = results_of("gated", 0, 1, seed, effect=0, noise=0) | ENOUGH
        write_run(tmp_path / str(seed), settings_of("gated", 0, 1, seed), results)
    assert "Before you believe it" not in page_on(tmp_path).sections["head"]


@pytest.mark.usefixtures("_undrawn")
def test_the_work_of_a_report_is_linear_in_its_runs(tmp_path: Path):

    def add_layer(layer: int) -> None:
        more = {"site.layer": layer}
        write_sweep(tmp_path / str(layer), archs=["standard", "gated", "jumprelu"], seeds=[0, 1, 2, 3], more=more)

    add_layer(0)
    one = calls(lambda: page_on(tmp_path))
    for layer in (5, 10):
        add_layer(layer)
    # Three times as many runs; nine times the work if each run were compared with every other.
    pages = []
    assert calls(lambda: pages.append(page_on(tmp_path))) < 4 * one
    (page,) = pages
    assert len([row for row in page.rows["runs"] if row]) == 288
    conditions = {row[0].partition("θ = 0.01")[2] for row in page.rows["matched"] if len(row) == 7}
    assert conditions == {"layer=0", "layer=5", "layer=10", "mean of the 9 above"}


def test_a_number_has_its_noise_and_its_controls_in_the_report(tmp_path: Path):
    for number, (theta, weight, seed) in enumerate(itertools.product((0.0, 0.01), (0.5, 1.0, 2.0, 4.0), range(4))):
        results = results_of("gated", theta, weight, seed, effect=-0.02, noise=0.001)
        fvu = results["eval/fvu"]
        results |= {"eval/absorption": fvu, "eval/absorption_noise": 0.03, "eval/absorption_random": 0.5 + 0.1 * fvu}
        write_run(tmp_path / "s" / str(number), settings_of("gated", theta, weight, seed), results)
    page = page_on(tmp_path / "s")
    matched = page.sections["matched"]
    assert "The evaluation's own noise is 0.03" in matched
    assert "Controls, on average over the runs: random directions 0.5" in matched
    pictures = [path.name for path in (tmp_path / "s" / "report" / "pictures").iterdir()]
    assert any(name.startswith("front_absorption") for name in pictures)
    assert not any("noise" in name or "random" in name for name in pictures)
