import json
import sys
from argparse import Namespace
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

import benchmarks
from benchmarks import ratios, same_numbers
from benchmarks.peers import comparison
from benchmarks.peers.comparison import (
    ARCHITECTURES,
    CHECKED_STEPS,
    OURS,
    PEERS,
    RECIPES,
    RECTIFIED,
    Measured,
    Row,
    in_turns,
    modes_of,
    write_vectors,
)
from benchmarks.peers.fsae_steps import write_weights
from benchmarks.peers.job import Job
from benchmarks.peers.process import Process, StoppedError
from benchmarks.peers.table import HEADINGS, cells, draw, markdown, slope
from benchmarks.peers.worker import Worker
from fsae.autoencoders import pursuit
from fsae.autoencoders.pursuit import MatchingPursuit
from fsae.training.settings import Precision

# These modules run in the peers' own Python.
NOT_OURS = {f"benchmarks.peers.{peer}_steps" for peer in PEERS} | {
    "benchmarks.sae_lens_training",
    "benchmarks.sae_dashboard_runner",
}
JOB = Job.of_fsae(Path(), d_in=8, d_sae=16, k=2, batch=32, lr=1e-3, device="cpu", threads=1)
# Replaces a peer's Python, and ends in its second timed step.
MORTAL = """#!/bin/sh
echo '{"sae_lens": "0"}'
while read word; do
    case $word in
        measure) echo '{"error": 1.0, "l0": 2.0}' ;;
        time) timed=$((timed + 1)); [ $timed = 2 ] && { echo "out of memory" >&2; exit 1; }; echo 0.5 ;;
        *) echo 0 ;;
    esac
done
"""


def row(
    peer: str, mode: str, architecture: str = "topk", dense: bool = False, error: float = 9.0, l0: float = 2.0
) -> Row:
    """Return a row of a peer that has this error after three steps; fsae's error fell from 10 to 9."""
    job = replace(JOB, architecture=architecture, density=None if dense else JOB.density)

    def measured(library: str, mode: str, after: dict[str, float], seconds: float) -> Measured:
        before = {"error": 10.0, "l0": 2.0}
        one = replace(job, library=library, mode=mode)
        return Measured(one, {library: "1", "torch": "2"}, before, after, [seconds], memory=10**9)

    ours = {mode: measured("fsae", mode, {"error": 9.0, "l0": 2.0}, 0.5) for mode in OURS}
    return Row(measured(peer, mode, {"error": error, "l0": l0}, 2.0), ours)


def other_start(made: Row) -> Row:
    """Return the row with another error before the first step."""
    return replace(made, theirs=replace(made.theirs, before={"error": 10.01, "l0": 2.0}))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of fsae, with its files."""
    names = {name: str(tmp_path / f"{name}.safetensors") for name in ("weights", "vectors", "held_out")}
    job = replace(JOB, **names)
    write_weights(job, write_vectors(job))
    return job


@pytest.fixture
def mortal(tmp_path: Path) -> Path:
    """A program that replaces a peer's Python and ends in its second timed step."""
    program = tmp_path / "python"
    program.write_text(MORTAL)
    program.chmod(0o755)
    return program


def test_every_module_imports():
    names = {module.name for module in walk_packages(benchmarks.__path__, "benchmarks.")}
    assert names >= NOT_OURS
    for name in names - NOT_OURS:
        import_module(name)


def test_slope_is_the_growth_with_the_width():
    assert slope({1: 1.0, 2: 2.0}) == 1
    assert slope({1: 3.0, 4: 6.0}) == pytest.approx(0.5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_and_the_picture_have_every_mode(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: [drawn.append(figure), save(figure, *to, **how)])
    starts = [(name, False) for name in (*ARCHITECTURES, *RECIPES)] + [(name, True) for name in RECTIFIED]
    rows = [
        row(peer, mode, architecture, dense)
        for architecture, dense in starts
        for peer in PEERS
        for mode in modes_of(peer, architecture, device, dense)
    ]
    page = markdown("a machine", JOB, 1, rows, {"fp32": {8: 1.0, 16: 2.0}})
    assert page.count("4.0x") == 2 * len(rows)
    assert "slope of the logarithms 1.00" in page
    draw(tmp_path / "peers.png", "a machine", rows)
    assert (tmp_path / "peers.png").stat().st_size > 0
    patches = drawn[0].legends[0].get_patches()
    ways = {(each.theirs.job.library, each.theirs.job.mode) for each in rows} | {("fsae", mode) for mode in OURS}
    assert len({patch.get_label() for patch in patches}) == len(patches) == len(ways)
    assert len({to_hex(patch.get_facecolor()) for patch in patches}) == len(ways)


def test_a_recipe_is_compared_with_the_peers_that_have_it():
    for recipe, peers in RECIPES.items():
        assert [peer for peer in PEERS if modes_of(peer, recipe, "cpu", dense=False)] == list(peers)


@pytest.mark.parametrize(("recipe", "peer"), [(recipe, peer) for recipe, peers in RECIPES.items() for peer in peers])
def test_steps_of_a_recipe_lower_the_error_that_it_is_compared_by(recipe: str, peer: str, job: Job):
    job = replace(job, architecture=recipe, rules=peer, density=job.k / job.d_sae, sparsity=0.01, lr=1e-2)
    job = replace(job, threads=torch.get_num_threads())
    write_weights(job, write_vectors(job))
    worker = Worker(job)
    before = worker.measure()
    for _ in range(20):
        worker.step()
    after = worker.measure()
    assert after["error"] < 0.98 * before["error"]
    if recipe != "p_anneal":
        assert 0 < after["l0"] <= 1.2 * job.k
    if job.transcodes:
        y = load_file(job.held_out)["y"]
        assert after["error"] / after["fvu"] == pytest.approx((y - y.mean(0)).square().sum().item() / len(y), rel=1e-5)


@pytest.mark.parametrize("name", ratios.changes(8))
def test_every_change_of_a_step_is_timed(name: str):
    options = Namespace(d_in=8, d_sae=64, batch=16, k=2, repeats=1)
    change = ratios.changes(8)[name]
    clock = iter(range(100)).__next__
    assert ratios.seconds(change, options, Precision.fp32, clock) == (1 / change.steps, 1 / change.steps)


@pytest.mark.parametrize(
    ("made", "figures"),
    [
        # A fiftieth of the whole error.
        (row("sae_lens", "fp32", error=9.2), "in fp32 its error differs by 0.2 of what these changed, its l0 by 0,"),
        (row("sae_lens", "fp32", l0=2.5), "its error differs by 0 of what these changed, its l0 by 0.25,"),
        (row("sae_lens", "fp32", error=float("nan")), "its error differs by nan"),
        (other_start(row("sae_lens", "fp32")), "at the start its error or l0 differs by 0.001"),
    ],
)
def test_a_peer_with_other_results_has_no_ratio(made: Row, figures: str, tmp_path: Path):
    notes: list[str] = []
    assert cells(made, notes) == ["topk", "sae_lens [1]", "failed", *["-"] * 10]
    assert "computes something else" in notes[0]
    assert figures in notes[0]
    draw(tmp_path / "peers.png", "a machine", [made])


def test_bounds_are_wider_for_known_differences():
    assert row("sae_lens", "fp32", error=9.023).failure is not None
    assert row("sae_lens", "fp32", "jumprelu", error=9.023).failure is None
    assert row("sae_lens", "bf16", error=9.1).failure is None
    assert row("sae_lens", "bf16", error=9.4).failure is not None


def checked(job: Job) -> Measured:
    """Return the measurements of the checked steps in this process."""
    worker = Worker(replace(job, threads=torch.get_num_threads()))
    before = worker.measure()
    for _ in range(CHECKED_STEPS):
        worker.step()
    return Measured(job, before=before, after=worker.measure(), seconds=[1.0])


def test_the_check_in_float64_accepts_another_order_of_sums_and_refuses_another_algorithm(
    job: Job, monkeypatch: pytest.MonkeyPatch
):
    job = replace(job, architecture="matching_pursuit", rules="sae_lens", d_in=16, d_sae=64, k=6, mode="fp64")
    write_weights(job, write_vectors(job))
    ours = {"fp64": checked(job)}

    def reason(changed: Job) -> str | None:
        theirs = checked(changed)
        return Row(replace(theirs, job=replace(job, library="sae_lens")), ours).failure

    with monkeypatch.context() as patch:
        # The same sums in another order.
        assert job.d_sae < (job.k - 1) * job.batch
        patch.setattr(MatchingPursuit, "gram_entries", 0)
        assert reason(job) is None
    assert "at the start its error or l0 differs" in str(reason(replace(job, k=5)))

    def without_the_residuals(W, latents, values, grad, residual, q, of_rows):
        """Gradients as if every step began with the same vector."""
        of_rows.copy_(grad.unsqueeze(2) * residual.unsqueeze(1))

    with monkeypatch.context() as patch:
        patch.setattr(pursuit, "_back", without_the_residuals)
        assert "after 3 steps in fp64 its error differs" in str(reason(job))


def test_a_peer_that_is_checked_in_float64_may_round_otherwise_but_not_compute_otherwise():
    timed = row("sae_lens", "fp32", "matching_pursuit", error=9.14)
    assert timed.failure is not None
    exact = row("sae_lens", "fp64", "matching_pursuit", error=9.00001)
    made = replace(timed, exact=replace(exact, ours={"fp64": exact.ours["fp32"]}))
    assert made.failure is None
    assert cells(made, [])[HEADINGS.index("differs by")] == "1e-05"
    other = row("sae_lens", "fp64", "matching_pursuit", error=9.001)
    made = replace(timed, exact=replace(other, ours={"fp64": other.ours["fp32"]}))
    assert "in fp64 its error differs by 0.001 of" in str(made.failure)


def test_a_peer_that_stops_in_a_timed_step_fails_its_row(mortal: Path, job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "python_of", lambda library: mortal if library in PEERS else Path(sys.executable))
    jobs = [job, replace(job, mode="bf16"), replace(job, library="sae_lens")]
    *ours, theirs = in_turns(jobs, repeats=3)
    assert theirs.failure == "sae_lens topk fp32: out of memory"
    assert [len(each.seconds) for each in ours] == [3, 3]
    notes: list[str] = []
    assert "failed" in cells(Row(theirs, dict(zip(OURS, ours, strict=True))), notes)
    assert notes == ["sae_lens, topk: sae_lens topk fp32: out of memory"]
    # fsae made real steps.
    assert all(each.after["error"] < each.before["error"] for each in ours)
    assert all(each.after["l0"] == pytest.approx(2.0, abs=0.2) for each in ours)


def test_a_process_that_ended_between_commands_can_be_closed(tmp_path: Path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '{}'\n")
    program.chmod(0o755)
    with Process(JOB, program) as process:
        process._process.wait()
        for _ in range(2):
            with pytest.raises(StoppedError, match="no output"):
                process.step()


def run_with(folder: Path, weight: float, loss: float | str, **results: float) -> dict[str, object]:
    """The numbers of a made-up run."""
    folder.mkdir()
    save_file({"b": torch.tensor([1.0, weight])}, folder / "sae_weights.safetensors")
    record = {"time_ms": 1, "step": 256, "metrics": {"train/loss": loss, "train/tokens_per_second": loss}}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "results.json").write_text(json.dumps(results | {"histogram": {"latents": [1, 2]}, "note": "words"}))
    return dict(same_numbers.numbers(folder))


def test_runs_are_the_same_if_every_weight_result_and_logged_value_is(tmp_path: Path):
    one = run_with(tmp_path / "1", 2.0, "NaN", fvu=float("nan"))
    other = run_with(tmp_path / "2", 2.0, "NaN", fvu=float("nan"))
    assert same_numbers.report(one, other, {}) == (True, "4 values and 1 tensors")
    longer = run_with(tmp_path / "3", 2.0, "NaN", fvu=float("nan"), mse=1.0)
    assert same_numbers.report(one, longer, {}) == (True, "4 values and 1 tensors; only in the working tree: mse")
    assert same_numbers.report(longer, one, {}) == (False, "results.json mse: no longer there")


@pytest.mark.parametrize(
    ("weight", "loss", "fvu", "where"),
    [
        (2.0, 0.30000000000000004, 0.5, "metrics.jsonl train/loss: at step 256: 0.3 -> 0.30000000000000004"),
        (2.0, 0.3, 0.25, "results.json fvu: 0.5 -> 0.25"),
        (-2.0, 0.3, 0.5, "sae_weights.safetensors b: 1 of 2 entries, at 1 2 -> -2"),
        (-2.0, 0.3, 0.25, "results.json fvu: 0.5 -> 0.25 (and 1 more)"),
    ],
)
def test_a_difference_is_reported_by_its_place_and_both_values(
    weight: float, loss: float, fvu: float, where: str, tmp_path: Path
):
    before = run_with(tmp_path / "before", 2.0, 0.3, fvu=0.5)
    after = run_with(tmp_path / "after", weight, loss, fvu=fvu)
    assert same_numbers.report(before, after, {}) == (False, where)


def test_weights_that_differ_by_one_bit_differ():
    assert same_numbers.difference(torch.tensor([0.0]), torch.tensor([-0.0])) == "1 of 1 entries, at 0 0 -> -0"


def test_names_are_translated_between_the_trees():
    renamed = {
        "loss.fisher": "loss.penalty",
        "arch=released_topk": "arch=released/topk",
        "train/fisher": "train/penalty",
    }
    overrides = ["loss.penalty.weight=1", "arch=topk,released/topk", "loss.penalty_form=1", "-m"]
    older = ["loss.fisher.weight=1", "arch=topk,released_topk", "loss.penalty_form=1", "-m"]
    assert [same_numbers.older_override(each, renamed) for each in overrides] == older
    metrics = ["train/fisher", "train/12/fisher", "train/fisher_ratio", "eval/fisher"]
    newer = ["train/penalty", "train/12/penalty", "train/fisher_ratio", "eval/fisher"]
    names = [same_numbers.newer_name(f"run/metrics.jsonl {each}", renamed) for each in metrics]
    assert names == [f"run/metrics.jsonl {each}" for each in newer]


def test_a_renamed_metric_is_compared_under_either_name():
    renamed = {"train/fisher": "train/penalty"}
    before = {"metrics.jsonl train/fisher": [(1, 0.5)]}
    assert same_numbers.report(before, {"metrics.jsonl train/penalty": [(1, 0.5)]}, renamed)[0]
    assert same_numbers.report(before, before, renamed)[0]
    assert not same_numbers.report(before, {"metrics.jsonl train/penalty": [(1, 0.25)]}, renamed)[0]
    assert not same_numbers.report(before, {"metrics.jsonl train/penalty": [(1, 0.5)]}, {})[0]
