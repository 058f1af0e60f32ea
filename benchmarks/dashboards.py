"""The time to find and write what all latents mean: fsae against SAEDashboard's runner for Neuronpedia.

    python -m benchmarks.dashboards                      # 262,144 tokens of SmolLM2-135M-Instruct, layer 3
    python -m benchmarks.dashboards --prompts 8192       # a million tokens

Both sides read the same tokens with the same SAE and language model in float32, and write SAEDashboard's batch files.
Their top contexts, densities and top logits are compared. fsae also labels the latents, measures a control and makes
pages. Its time is that of `python -m fsae.latents` and `python -m fsae.publish`, with imports.

SAEDashboard goes through all tokens for each batch of latents: 128 by the defaults of its configuration, 2 by those of
its command line. Only the first batches are measured. The time for all latents is scaled: the seconds before the first
batch, plus those by which the first batch is longer than the median of the others because it reads the language model,
plus that median for every batch.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine_name
from benchmarks.peers.environment import python_of
from benchmarks.runs import CONTEXT, fsae_run, timed
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from fsae.outputs.latent_store import LatentStore
from fsae.ranges import COUNT, COUNT_OR_NONE, argument, between

# Positions at the start of a row that are left out on both sides.
SKIPPED = 1
# The batches' sizes by the defaults of SAEDashboard's configuration and of its command line.
SIZES = (128, 2)
# The largest difference of two top codes beyond SAEDashboard's rounding to three decimals, as a share of the code.
BOUND = 1e-3


@dataclass(frozen=True)
class Cost:
    """Seconds of work.

    Attributes:
        wall: on the clock.
        cpu: of all cores.
    """

    wall: float
    cpu: float

    def __str__(self):
        return f"{self.wall:,.0f} s ({self.cpu:,.0f} CPU seconds)"


def main() -> None:
    """Train an SAE, run both sides, and print their times, the ratios and the comparison of what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=argument(int, COUNT), default=2048, help=f"rows of {CONTEXT} tokens")
    parser.add_argument("--layer", type=argument(int, COUNT_OR_NONE), default=3)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=4608)
    parser.add_argument("--samples", type=argument(int, COUNT), default=200_000, help="training samples of the SAE")
    parser.add_argument(
        "--batches", type=argument(int, between(least=3, most=1000)), default=4, help="measured batches of each size"
    )
    options = parser.parse_args()
    print(
        f"{machine_name('cpu')}, {torch.get_num_threads()} threads; SmolLM2-135M-Instruct (Q4_1) "
        f"resid_post.{options.layer}, {options.prompts * CONTEXT:,} tokens, {options.d_sae:,} latents",
        flush=True,
    )
    python = python_of("sae_dashboard")
    with tempfile.TemporaryDirectory(prefix="fsae-dashboards-") as name:
        folder = Path(name)
        run = trained(options, folder)
        cost, ours = our_dashboards(run, options.prompts, folder)
        print(f"fsae, all {options.d_sae:,} latents: {cost}", flush=True)
        theirs = their_dashboards(python, options, run, ours, folder)
        for size in SIZES:
            report(theirs, size, options.d_sae, cost)
        compare(LatentStore(run / "latents"), ours, folder, options.batches)


def trained(options: argparse.Namespace, folder: Path) -> Path:
    """Return the folder of a run with an SAE."""
    fsae_run(
        [
            "arch=batch_topk", f"arch.d_sae={options.d_sae}", "arch.k=32", "site=resid_post",
            f"site.layer={options.layer}", f"trainer.samples={options.samples}", "eval=[vectors]",
            f"dataset.skip_positions={SKIPPED}", "source.max_norm_multiple=null", "source.tokens=null",
            "source.cache=none",
        ],
        str(folder),
    )  # fmt: skip
    (run,) = (folder / "runs").iterdir()
    return run


def our_dashboards(run: Path, prompts: int, folder: Path) -> tuple[Cost, Path]:
    """Return the seconds for pages and batch files of all latents, and the folder of the batch files."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = 0.0
    # Whole prompts, as SAEDashboard's runner shows them.
    text = ["--train-text", "--tokens", str(prompts * CONTEXT), f"eval.latents.window={CONTEXT}"]
    target = ["--saedashboard", str(folder / "ours"), "--model", "smollm2", "--set", "benchmark"]
    for command in (["fsae.latents", str(run), *text], ["fsae.publish", str(run), *target]):
        seconds, _ = timed([sys.executable, "-m", *command], {"FSAE_OUTPUTS": str(folder)})
        wall += seconds
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (batches,) = (folder / "ours").iterdir()
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), batches


def their_dashboards(python: Path, options: argparse.Namespace, run: Path, ours: Path, folder: Path) -> dict[str, Any]:
    """Return SAEDashboard's seconds before the first batch, and those of each batch by the batches' size."""
    (folder / "text").mkdir()
    # The runner opens a data set, and then reads the tokens that it finds in its folder.
    (folder / "text" / "train.jsonl").write_text(json.dumps({"text": "not read"}) + "\n")
    job = {
        "model": str(packaged_folder(Package.smollm2_135m_instruct_q4_1)),
        "sae": str(run / "sae"),
        "tokens": str(ours / f"tokens_{options.prompts}.pt"),
        "dataset": str(folder / "text"),
        "prompts": options.prompts,
        "context": CONTEXT,
        "skip": SKIPPED,
        "batches": [(size, options.batches) for size in SIZES],
        "folder": str(folder),
        "ours": [str(path) for path in ours.glob("batch-*.json")],
        "threads": torch.get_num_threads(),
    }
    script = Path(__file__).with_name("sae_dashboard_runner.py")
    _, output = timed([str(python), str(script), json.dumps(job)], {"HF_HUB_OFFLINE": "1"})
    return json.loads(output.strip().splitlines()[-1])


def report(theirs: dict[str, Any], size: int, d_sae: int, ours: Cost) -> None:
    """Print SAEDashboard's measured and scaled seconds for a size of batches, and their ratio to fsae's."""
    count = -(-d_sae // size)
    with_reading = theirs["batches"][str(SIZES[0])]
    first, usual = medians(with_reading[:1]), medians(with_reading[1:])
    # The activations are there before the first batch of the other size.
    own = medians(theirs["batches"][str(size)][1:])
    wall, cpu = (theirs["opening"][each] + first[each] - usual[each] + count * own[each] for each in range(2))
    print(
        f"SAEDashboard, {size} latents per batch:\n"
        f"  measured: {Cost(*theirs['opening'])} before the first batch; in the first batch {Cost(*first)}"
        f"{'' if size == SIZES[0] else f' with {SIZES[0]} latents'}; in each later batch {own[0]:.2f} s "
        f"({own[1]:.2f} CPU seconds)\n"
        f"  all {count:,} batches, scaled: {Cost(wall, cpu)}\n"
        f"  SAEDashboard / fsae: {wall / ours.wall:.1f}x ({cpu / ours.cpu:.1f}x CPU seconds)",
        flush=True,
    )


def medians(turns: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the medians of wall and CPU seconds."""
    wall, cpu = zip(*turns, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def compare(store: LatentStore, ours: Path, folder: Path, batches: int) -> None:
    """Print how far the latents of both sides' batch files agree.

    Raises:
        SystemExit: latents or top codes differ.
    """
    meta = store.meta
    compared, worst, density, tokens = 0, 0.0, 0.0, []
    for number in range(batches):
        mine = _features(ours / f"batch-{number}.json")
        (path,) = (folder / "theirs" / str(SIZES[0])).rglob(f"batch-{number}.json")
        for latent, feature in _features(path).items():
            peaks = _top_codes(feature)
            if latent not in mine:
                if peaks[0] > 0:
                    raise SystemExit(f"latent {latent} is on for SAEDashboard, with {peaks[0]}, and never for fsae")
                continue
            own = mine[latent]
            compared += 1
            # SAEDashboard may show a context several times, so it has fewer different ones.
            for code, peak in zip(_top_codes(own), peaks, strict=False):
                worst = max(worst, (abs(code - peak) - 5e-4) / code)
            # SAEDashboard divides by all positions, fsae by those that count.
            of_all = own["frac_nonzero"] * meta.positions / (meta.contexts * meta.context)
            density = max(density, abs(of_all - feature["frac_nonzero"]))
            tokens += [name in own["pos_str"] for name in feature["pos_str"]]
    if worst > BOUND:
        raise SystemExit(f"a code in the top contexts differs by {worst:.2g} of itself, beyond the bound of {BOUND:g}")
    print(
        f"{compared} latents compared: codes in top contexts differ by at most {max(0.0, worst):.1g} of themselves "
        f"beyond SAEDashboard's rounding, densities by {density:.1g}; {statistics.mean(tokens):.0%} of its top logits "
        "are those of fsae. Its classes open all of fsae's batch files."
    )


def _features(path: Path) -> dict[int, dict[str, Any]]:
    return {feature["feature_index"]: feature for feature in json.loads(path.read_text())["features"]}


def _top_codes(feature: dict[str, Any]) -> list[float]:
    """Return the largest codes of the different top contexts, descending."""
    top = [each for each in feature["activations"] if each["bin_contains"] == -1]
    peaks: dict[tuple[str, ...], float] = {}
    for each in top:
        key = tuple(each["tokens"])
        peaks[key] = max(peaks.get(key, 0.0), *each["values"])
    return sorted(peaks.values(), reverse=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
