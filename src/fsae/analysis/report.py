"""The report on a set of runs: one HTML page that needs no network, its pictures, and the table of runs."""

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from jinja2 import Environment, FileSystemLoader

from fsae.analysis.comparison import (
    ALL_ARCHITECTURES,
    COMPARED_FIRST,
    MIN_SPARSITIES,
    Comparison,
    Curves,
    compare,
    curves_of,
    in_step,
    treatments,
)
from fsae.analysis.design import SIZE, SPARSITY, THETA, Design, comparable, design_of, named
from fsae.analysis.intervals import MIN_SEEDS
from fsae.analysis.job_table import JobTable, job_table
from fsae.analysis.metrics import Accompaniment, accompaniment, in_tables, meanings_of
from fsae.analysis.numbers import readable, shown
from fsae.analysis.runs import HISTOGRAM
from fsae.analysis.sweep_plots import (
    AXIS_LABELS,
    Palette,
    plot_density,
    plot_description_length,
    plot_differences,
    plot_front,
    plot_theta,
)
from fsae.outputs.results import LARGE_TAIL, Better, Meaning
from fsae.outputs.run_folder import RunFolder
from fsae.wording import counted

# A number whose least value over l0 is the finding.
PROJECTION = "eval/decoder_projection"
FRONTS = ("eval/fvu", "eval/ce_recovered_zero", PROJECTION)
THETA_CURVES = ("eval/fvu", "eval/l0", "eval/code_correlation_excess")
PAGE = "report.html"
# Behind a number's name; as in the table of jobs.
_ARROWS = {Better.more: "\N{NO-BREAK SPACE}↑", Better.less: "\N{NO-BREAK SPACE}↓", Better.neither: ""}
# A caveat names at most so many jobs.
NAMED_AT_MOST = 4
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Picture:
    """One picture on the page: its file and its caption."""

    file: Path
    caption: str

    @property
    def data(self) -> str:
        """Return the file as a data address, so that the page contains it."""
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode()


@dataclass(frozen=True)
class Failure:
    """One run that has no results."""

    run: str
    state: str
    reason: str
    folder: str


def write_report(runs: pd.DataFrame, folder: Path) -> Path:
    """Compare the runs and write `report.html`, the pictures it holds (`pictures/`), `runs.parquet` and `runs.csv`.

    An earlier report in the folder is replaced.

    Args:
        runs: as `fsae.analysis.runs` collects them; at least one.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / "pictures"
    for picture in pictures.glob("*.png"):
        picture.unlink()
    runs.to_parquet(folder / "runs.parquet")
    runs.drop(columns=list(HISTOGRAM)).to_csv(folder / "runs.csv", index=False)
    usable = comparable(runs)
    design = design_of(runs)
    table = job_table(runs)
    palette = Palette(sorted(set(design.cells["arch"])), treatments(design.cells))
    meanings = meanings_of(runs)
    comparisons = compare(design, meanings)
    compared = [each for each in comparisons if not each.obstacle]
    page = _TEMPLATES.get_template("report.html.jinja").render(
        title=_title(runs),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        counts=[f"{count} {state}" for state, count in Counter(runs["state"]).most_common()],
        design=design,
        table=table,
        latents={row.folder: list(_latent_pages(Path(row.folder), folder)) for row in table.rows if row.folder},
        readable=readable,
        signed=_signed,
        shown=shown,
        sort_value=_sort_value,
        in_short=list(_in_short(comparisons, meanings)) if compared else [],
        caveats=[*_caveats(runs, table), *_cautions(runs, usable, design)],
        comparisons=list(_by_metric(comparisons, meanings)) if compared else [],
        accompaniments={
            _label(metric, meanings): _sentences(accompaniment(design.cells, metric, meanings))
            for metric in dict.fromkeys(each.metric for each in comparisons)
        },
        comparison_absent="" if compared else _comparison_absent(design, comparisons),
        intervals=sum(each.interval is not None for each in comparisons),
        limits={"seeds": MIN_SEEDS, "sparsities": MIN_SPARSITIES},
        differences=list(_plot_differences(comparisons, palette, pictures)),
        fronts=[
            *_plot_fronts(design, meanings, palette, pictures),
            *_plot_description_lengths(usable, design, palette, pictures),
        ],
        front_remark=_front_remark(design),
        thetas=list(_plot_thetas(design, palette, pictures)),
        densities=list(_plot_densities(usable, design, pictures)),
        relative_norms=list(_relative_norms(table)),
        failures=list(_failures(runs, usable)),
        in_step=in_step,
        penalties=list(dict.fromkeys(each.treatment for each in comparisons)),
        all_architectures=ALL_ARCHITECTURES,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _latent_pages(run: Path, report: Path) -> Iterator[str]:
    """Yield the addresses of a run's pages of latents, one for each member, relative to the report's folder."""
    for page in RunFolder(run).latent_pages:
        yield quote(Path(os.path.relpath(page, report.resolve())).as_posix())


def _relative_norms(table: JobTable) -> Iterator[Picture]:
    """Yield the pictures of crosscoders' relative norms, which `eval=[crosscoder]` drew in the folders of the runs."""
    for row in table.rows:
        if row.folder and (file := RunFolder(Path(row.folder)).plots / "relative_norms.png").exists():
            yield Picture(file, row.job)


def _title(runs: pd.DataFrame) -> str:
    sweeps = [str(sweep) for sweep in dict.fromkeys(runs["sweep"]) if sweep]
    if sweeps and set(runs["sweep"]) == {sweeps[0]}:
        return f"Sweep {sweeps[0]}"
    if len(runs) == 1:
        return f"Run {runs['run'].iloc[0]}"
    return counted(len(runs), "run") + (f" of {len(sweeps)} sweeps" if len(sweeps) > 1 else "")


def _label(metric: str, meanings: Mapping[str, Meaning]) -> str:
    """Return what a metric is, with an arrow to its better direction."""
    label = AXIS_LABELS.get(metric) or f"{meanings[metric]} ({metric.removeprefix('eval/')})"
    better = meanings[metric].better if metric in meanings else Better.neither
    return f"{label}{_ARROWS[better]}"


def _sentences(found: Accompaniment) -> str:
    """Return a sentence each on the noise and the controls of a number; "" without any."""
    sentences = []
    if found.noise is not None:
        sentences.append(f"The evaluation's own noise is {readable(found.noise, 2)} (standard deviation over seeds).")
    if found.controls:
        means = [f"{name} {readable(float(values[1].mean()), 3)}" for name, values in found.controls.items()]
        sentences.append(f"Controls, on average over the runs: {', '.join(means)}.")
    return " ".join(sentences)


def _of(comparisons: Sequence[Comparison], metric: str) -> list[Comparison]:
    return [each for each in comparisons if each.metric == metric]


def _by_metric(
    comparisons: Sequence[Comparison], meanings: Mapping[str, Meaning]
) -> Iterator[tuple[str, list[Comparison]]]:
    """Yield each metric's label and its comparisons."""
    for metric in dict.fromkeys(each.metric for each in comparisons):
        yield _label(metric, meanings), _of(comparisons, metric)


def _in_short(
    comparisons: Sequence[Comparison], meanings: Mapping[str, Meaning]
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each metric's label and, for each treatment, the counts of verdicts and the verdict on their mean."""
    words = {"lower": "lower", "higher": "higher", "none": "no difference found", "few": "too few to say"}
    names = list(dict.fromkeys(each.treatment for each in comparisons))
    for label, of_metric in _by_metric(comparisons, meanings):
        cells = []
        for treatment in names:
            found = [each for each in of_metric if each.treatment == treatment]
            single = [each for each in found if each.arch != ALL_ARCHITECTURES]
            comparable_ones = [each for each in single if not each.obstacle]
            if len(single) == 1:
                cells.append((single[0].verdict, single[0].worth))
                continue
            outcomes = Counter(each.outcome for each in comparable_ones)
            counted = ", ".join(f"{words[name]} in {outcomes[name]}" for name in words if outcomes[name])
            text = f"{counted or 'comparable in 0'} of {len(single)}"
            mean = next((each for each in found if each.arch == ALL_ARCHITECTURES), None)
            cells.append((f"{text}; mean: {mean.verdict}", mean.worth) if mean else (text, ""))
        yield label, cells


def _cautions(runs: pd.DataFrame, usable: pd.DataFrame, design: Design) -> Iterator[str]:
    """Yield the cautions that a reader needs before believing a difference."""
    missing = len(runs) - len(usable)
    if missing and len(usable):
        yield f"{missing} of {counted(len(runs), 'run')} {'is' if missing == 1 else 'are'} not compared; see below."
    commits = {commit for commit in usable["commit"] if commit}
    if len(commits) > 1:
        yield f"The runs come from {len(commits)} commits of the code; a difference may be one of the code."
    if _differs_unseen(usable):
        yield (
            "Runs of the same model and data set were trained on different text or weights: the files behind these "
            "settings changed in between. A difference may be one of the data."
        )
    if design.repeats:
        yield f"{counted(design.repeats, 'run')} of the same settings as another; such runs are averaged."
    dense = [share for share in _values(usable, "eval/dense_share") if share > 0.5]
    if dense:
        yield (
            f"In {counted(len(dense), 'run')} more than half of the latents are active on more than a tenth of the "
            "vectors: nothing keeps their codes sparse."
        )
    silent = [l0 for l0 in _values(usable, "eval/l0") if l0 == 0]
    if silent:
        yield f"In {counted(len(silent), 'run')} no latent is ever active; such a run is in no curve."
    broken = [
        name for name in in_tables(meanings_of(runs)) if any(math.isnan(value) for value in _values(usable, name))
    ]
    if broken:
        names = ", ".join(name.removeprefix("eval/") for name in broken)
        yield f"Some runs lack a finite value of {names}; they are left out where it is compared."
    # The counts that were measured: an evaluation of a finished run may use others than its settings have.
    for name in ("data/held_out_samples", "eval/fisher_batch"):
        if len({shown(value) for value in _values(usable, name) if not math.isnan(value)}) > 1:
            yield f"{name.partition('/')[2]} differs between runs: their held-out numbers differ in precision too."


def _differs_unseen(usable: pd.DataFrame) -> bool:
    """Return whether the data of some runs differ although the settings that name the data are equal."""
    known = usable[usable["data"].notna()]
    settings = [name for name in known if str(name).startswith(("model.", "dataset.", "source.path"))]
    data_of: dict[tuple[str, ...], set[str]] = {}
    for _, run in known.iterrows():
        data_of.setdefault(tuple(str(run[name]) for name in settings), set()).add(str(run["data"]))
    return any(len(data) > 1 for data in data_of.values())


def _caveats(runs: pd.DataFrame, table: JobTable) -> Iterator[str]:
    """Yield the caveats that weaken the numbers of some jobs in every comparison."""

    def of(found: Bool[np.ndarray, " runs"]) -> str:
        names = [row.job for row, is_found in zip(table.rows, found, strict=True) if is_found]
        if len(names) == len(runs):
            return f"all {len(names)} jobs" if len(names) > 1 else "this job"
        more = f"; and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
        return f"{len(names)} of {len(runs)} jobs ({'; '.join(names[:NAMED_AT_MOST])}{more})"

    def span(values: Float[np.ndarray, " some"]) -> str:
        ends = (f"{value:,.0f}" if value >= 100 else readable(value, 2) for value in (values.min(), values.max()))
        return " to ".join(dict.fromkeys(ends))

    rounds = _numbers(runs, "data/text_rounds")
    if (again := rounds > 1).any():
        distinct, wanted = (_numbers(runs, f"data/train_samples_{name}")[again] for name in ("distinct", "wanted"))
        yield (
            f"Too little text in {of(again)}: only {span(distinct)} of {span(wanted)} training samples are distinct, "
            f"the text was read {span(rounds[again])} times over. An autoencoder may memorise such text; its "
            "numbers say little about other text."
        )
    held_out, asked = (_numbers(runs, f"data/held_out_samples{name}") for name in ("", "_wanted"))
    if (short := held_out < asked).any():
        yield (
            f"Too few held-out samples in {of(short)}: {span(held_out[short])} of {span(asked[short])}. "
            "Small differences between such numbers are chance."
        )
    top = _numbers(runs, "eval/top_variance_share")
    if (massive := top > LARGE_TAIL).any():
        yield (
            f"Massive activations in {of(massive)}: one held-out vector in a thousand, those with the largest norms, "
            f"holds {span(100 * top[massive])} % of the variance. Such an fvu measures the reconstruction "
            "of these few, and hardly that of all others."
        )


def _numbers(runs: pd.DataFrame, name: str) -> Float[np.ndarray, " runs"]:
    """Return a column of numbers; NaN for a run that has none."""
    return np.array(_values(runs, name) or [math.nan] * len(runs), dtype=float)


def _signed(value: float) -> str:
    """Format a difference with its sign and two digits."""
    text = readable(value, 2)
    return f"+{text}" if value > 0 else text


def _sort_value(value: object) -> str:
    """Return the value by which the page's script sorts a setting's cell."""
    return json.dumps(float(value)) if isinstance(value, int | float) else str(value)


def _values(runs: pd.DataFrame, name: str) -> list[float]:
    return runs[name].to_list() if name in runs else []


def _comparison_absent(design: Design, comparisons: Sequence[Comparison]) -> str:
    """Return the reason why nothing can be compared at matched l0."""
    names = set(design.cells["treatment"])
    if not names:
        return "no run has finished with results"
    if design.baseline not in names:
        return f"there is no baseline: no run has penalty=none or {THETA}=0"
    if names == {design.baseline}:
        return f"no run has a penalty: all have penalty=none or {THETA}=0"
    return "; ".join(dict.fromkeys(each.obstacle for each in comparisons))


def _front_remark(design: Design) -> str:
    if max(design.cells.groupby("arch")["sparsity"].nunique().to_list(), default=0) > 1:
        return ""
    return f"No setting of sparsity varies within an architecture ({', '.join(SPARSITY)}), so there are no fronts."


def _plot_differences(comparisons: Sequence[Comparison], palette: Palette, folder: Path) -> Iterator[Picture]:
    for metric in COMPARED_FIRST:
        compared = [each for each in _of(comparisons, metric) if not each.obstacle]
        if compared:
            file = folder / f"difference_{_file_name(metric)}.png"
            plot_differences(compared, palette, file)
            yield Picture(file, AXIS_LABELS[metric])


def _plot_fronts(design: Design, meanings: Mapping[str, Meaning], palette: Palette, folder: Path) -> Iterator[Picture]:
    """Draw the main numbers, and every number of tables that has a control."""
    controlled = [metric for metric in in_tables(meanings) if accompaniment(design.cells, metric, meanings).controls]
    for metric in dict.fromkeys([*FRONTS, *controlled]):
        if metric not in design.cells:
            continue
        curves = curves_of(design.cells, metric)
        for number, condition in enumerate(dict.fromkeys(condition for condition, _, _ in curves)):
            here = [seeds for (where, _, _), seeds in curves.items() if where == condition]
            if sum(len(curve.l0) for seeds in here for curve in seeds.values()) < 2:
                continue
            file = folder / f"front_{_file_name(metric)}_{number}.png"
            cells = design.cells.loc[design.cells["condition"].map(str) == condition]
            beside = accompaniment(cells, metric, meanings)
            plot_front(curves, condition, _label(metric, meanings), palette, file, beside)
            lowest = _lowest(curves, condition) if metric == PROJECTION else ""
            yield Picture(file, "; ".join(filter(None, [condition, lowest])))


def _lowest(curves: Curves, condition: str) -> str:
    """Return the l0 at which the curves of a condition are lowest, by architecture and treatment."""
    found = []
    for (where, arch, treatment), seeds in curves.items():
        places = [each.lowest for each in seeds.values() if len(each.l0) > 2]
        if where != condition or not places:
            continue
        inner = [place for place in places if place is not None]
        said = "-".join(dict.fromkeys(readable(place, 3) for place in (min(inner), max(inner)))) if inner else ""
        ends = f"{counted(len(places) - len(inner), 'curve')} lowest at an end" if len(inner) < len(places) else ""
        found.append(f"{arch}, {treatment}: {', '.join(filter(None, [said, ends]))}")
    return f"lowest at l0 ({'; '.join(found)})" if found else ""


def _plot_description_lengths(
    usable: pd.DataFrame, design: Design, palette: Palette, folder: Path
) -> Iterator[Picture]:
    """Draw one picture per origin of vectors: a line per way of training, with sizes and sparsities along it."""
    name = "eval/description_length"
    if name not in usable:
        return
    how = [each for each in design.conditions if each.startswith(("arch.", "trainer")) and each not in SIZE]
    where = [each for each in design.conditions if each not in (*how, *SIZE)]
    along = [each for each in (*SIZE, *SPARSITY) if each in usable]
    coded = usable.loc[usable[name] > 0]
    rows = coded.to_dict("records")
    # A setting that is the same in all runs is in no label.
    differing = [each for each in along if coded[each].map(shown).nunique() > 1]
    points = coded[[name, "eval/fvu"]].assign(
        condition=[named(row, where) for row in rows],
        arch=design.labels["arch"],
        treatment=[
            ", ".join(filter(None, [treatment, named(row, how, skip_absent=True)]))
            for treatment, row in zip(design.labels.loc[coded.index, "treatment"], rows, strict=True)
        ],
        setting=[named(row, along) for row in rows],
        label=[_point_label(row, differing) for row in rows],
    )
    styles = replace(palette, treatments=list(dict.fromkeys(points["treatment"])))
    for number, (condition, here) in enumerate(points.groupby("condition", sort=False)):
        if len(here) > 1:
            file = folder / f"description_length_{number}.png"
            plot_description_length(here, styles, file)
            caption = "against the bits of a sample's codes"
            if any(here["label"]):
                caption += "; labels are latents and sparsity, as far as they differ and there is room"
            yield Picture(file, ", ".join(filter(None, [str(condition), caption])))


def _point_label(row: Mapping[str, object], names: Sequence[str]) -> str:
    """Return the size and the sparsity of a run in short, as in "128, rank 15, weight=0.3"."""
    texts = {name: shown(row[name]) for name in names if shown(row[name]) != "null"}
    if "arch.d_sae" in texts:
        # The number of latents follows from the expansion.
        texts.pop("arch.expansion", None)
    sizes = {"arch.d_sae": "%s", "arch.expansion": "%s d_in", "arch.rank": "rank %s"}
    return ", ".join(sizes.get(name, f"{name.rpartition('.')[2]}=%s") % text for name, text in texts.items())


def _plot_thetas(design: Design, palette: Palette, folder: Path) -> Iterator[Picture]:
    for metric in THETA_CURVES:
        if metric not in design.cells:
            continue
        for number, condition in enumerate(dict.fromkeys(design.cells["condition"])):
            cells = design.cells.loc[(design.cells["condition"] == condition) & design.cells[metric].notna()]
            # One weight per architecture shows no effect of the weight.
            if max(cells.groupby("arch")["treatment"].nunique().to_list(), default=0) > 1:
                file = folder / f"theta_{_file_name(metric)}_{number}.png"
                plot_theta(cells, metric, palette, file)
                yield Picture(file, condition)


def _plot_densities(usable: pd.DataFrame, design: Design, folder: Path) -> Iterator[Picture]:
    """Draw one picture per condition, at each architecture's middle sparsity by l0, averaged over seeds."""
    cells = design.labels.loc[[shown(each) != "null" for each in usable[HISTOGRAM[1]]]]
    for number, condition in enumerate(dict.fromkeys(cells["condition"])):
        here = cells.loc[cells["condition"] == condition]
        latents = {}
        told = []
        for arch in sorted(set(here["arch"])):
            within = here.loc[here["arch"] == arch]
            l0 = usable.loc[within.index, "eval/l0"].groupby(within["sparsity"]).mean().sort_values()
            middle = str(l0.index[(len(l0) - 1) // 2])
            told.append(f"{arch} {middle} (l0 {readable(l0.iloc[(len(l0) - 1) // 2], 3)})")
            for treatment in treatments(within):
                rows = within.index[(within["sparsity"] == middle) & (within["treatment"] == treatment)]
                if len(rows):
                    counts = np.mean([usable.at[row, HISTOGRAM[1]] for row in rows], axis=0)
                    latents[arch, treatment] = (usable.at[rows[0], HISTOGRAM[0]], counts)
        file = folder / f"density_{number}.png"
        plot_density(latents, file)
        yield Picture(file, "; ".join(filter(None, [condition, *told])))


def _failures(runs: pd.DataFrame, usable: pd.DataFrame) -> Iterator[Failure]:
    lost = runs.loc[~runs.index.isin(usable.index)]
    for row in lost.to_dict("records"):
        state = str(row["state"])
        if state == "finished":
            if row.get("task") not in (None, "train"):
                # Runs of other tasks are complete, and are not compared.
                continue
            state = "no results"
        reason = row["failure"] or {"running": "it is still running"}.get(state, "")
        yield Failure(str(row["run"]), state, str(reason), str(row["folder"] or ""))


def _file_name(metric: str) -> str:
    return metric.removeprefix("eval/")
