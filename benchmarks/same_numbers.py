"""A check that a change of the source has changed no number.

    python -m benchmarks.same_numbers --against v0.1             # every case: some minutes on two cores
    python -m benchmarks.same_numbers --against HEAD~3 --cases population,resume --keep /tmp/compared

Each case is a small run, or a sweep of them, made twice at the same time: with the source and the YAML files of the
commit, and with those of the working tree, by the same Python on one thread. Two runs are the same if all their weights
are the same bit by bit, and so is every number of their results and every value that they logged at every step, apart
from speeds. One line per case reports the first difference, and the exit status is 1 if there is any.

What only the working tree's run has is reported, and is no difference.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.source_tree import ROOT, environment_of, tree_of

# What had another name in an older tree: {older name: name in the working tree}, for
#   settings and groups   "loss.fisher": "loss.penalty"
#   choices of a group    "arch=released_topk": "arch=released/topk"
#   metrics and results   "train/fisher": "train/penalty"
# The cases below have the working tree's names.
RENAMED: dict[str, str] = {
    "trainer.tokens": "trainer.samples",
    "eval.tokens": "suite.samples",
    "eval.batch_size": "suite.batch_size",
    "eval.splice_tokens": "suite.tokens",
    "eval=geometry": "eval=[vectors,splice,geometry]",
    "loss.fisher": "loss.penalty",
    "train/fisher_weighted": "train/penalty_weighted",
    "train/started_over": "train/reinitialised",
    "arch=released_standard": "arch=released/standard",
    "arch=released_gated": "arch=released/gated",
    "arch=released_jumprelu": "arch=released/jumprelu",
    "arch=released_topk": "arch=released/topk",
    "population=mfr": "population=mfr/base",
    "experiment=fisher_as_released": "experiment=fisher/as_released",
    "experiment=mfr_synthetic_small": "experiment=mfr/synthetic_small",
    "experiment=pam_mnist_small": "experiment=splines/pam_mnist_small",
    "experiment=splines_toy": "experiment=splines/toy",
}

# Values that depend on how fast or how full the machine is.
CLOCKS = re.compile("second|memory")

# A line of a run's output that says why it failed.
ERROR = re.compile("^fsae: | ERROR |Error: ")

# How a run ends that SIGTERM has stopped.
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Command:
    """One call of `python -m fsae.run`; `{outputs}` in an override is the folder of the case.

    Attributes:
        overrides: the command line.
        folder: name of the folder that the run, or the sweep, is given. Two commands with one folder continue a run.
        stopped: whether SIGTERM stops it, after its first checkpoint and its first logged values.
    """

    overrides: tuple[str, ...]
    folder: str = "run"
    stopped: bool = False


# Sixteen steps on a random language model of width 32. The last interval of logging is a short one.
TINY = (
    "debug=tiny", "arch.d_sae=64", "trainer.samples=4096", "trainer.batch_size=256", "trainer.log_every=5",
    "trainer.dead_after=512", "source.tokens=2048", "source.shard_tokens=1500", "source.seed=0",
    "suite.samples=512", "suite.batch_size=256", "suite.tokens=128",
)  # fmt: skip
# A few codes of many latents: some latents are dead, and auxk has something to do.
FEW = ("arch.d_sae=512", "arch.k=choice(2)", "trainer.lr=0.01")
# As long as TINY, without a language model.
TOY = (
    "tracking=none", "trainer.samples=4096", "trainer.batch_size=256", "trainer.log_every=5", "trainer.dead_after=512",
    "suite.samples=512", "suite.batch_size=256",
)  # fmt: skip
POPULATION = (
    "arch=topk", "arch.k=2", "arch.d_sae=512", "trainer.lr=0.01", "population=mfr/base", "population.size=3",
    "population.mutual.match_every=3", "population.reinitialise.scope=latents", "population.reinitialise.threshold=0.3",
    "population.reinitialise.every=4", "trainer.resample_every=1024",
)  # fmt: skip
# Long enough to be stopped on the way.
LONG = (
    "trainer.samples=100_000", "trainer.log_every=20", "trainer.checkpoint_seconds=0.2",
    "trainer.resample_every=10_000",
)  # fmt: skip

CASES: dict[str, tuple[Command, ...]] = {
    # The default loss, which penalises Fisher's off-diagonal.
    "rectified": (Command((*TINY, "-m", "arch=standard,gated,jumprelu")),),
    "topk": (Command((*TINY, *FEW, "-m", "arch=topk,batch_topk,abs_topk", "eval=[vectors,splice,geometry]")),),
    "fitted": (Command((*TINY, "-m", "arch=kmeans,local_pca,pca", "arch.d_sae=32", "eval=[vectors,splice,geometry]")),),
    "losses": (
        Command((
            *TINY, "-m", "arch=jumprelu", "loss=jumprelu_tanh,jumprelu_target_l0,squared_error",
            "loss.penalty.weight=0.1",
        )),
    ),
    "fisher": (
        Command((
            *TINY, "-m", "arch=gated", "loss.penalty.form=pre,post,correlation,reconstruction",
            "loss.penalty.estimator=batch,unbiased", "loss.penalty.weight=0.1",
        )),
    ),
    "optimiser": (
        Command((
            *TINY, "-m", "arch=standard,jumprelu,batch_topk", "arch.d_sae=512", "arch.decoder_norm=free", "seed=1",
            "trainer.lr=0.01", "trainer.precision=bf16", "trainer.weight_decay=0.01", "trainer.clip_norm=null",
            "trainer.updates_per_batch=2", "trainer.resample_every=1024", "trainer.activation_scale=none",
        )),
    ),
    "packed": (
        Command((
            *TINY, "-m", "launcher=packed", "arch=gated", "loss.sparsity.weight=0.1,0.5,1", "loss.penalty.weight=100",
        )),
    ),
    "population": (Command((*TINY, *POPULATION)),),
    "pam": (
        Command((
            *TINY, "-m", "trainer=pam", "arch=gated,topk", "arch.decoder_norm=free", "loss.penalty.weight=0.01",
            "trainer.encoder_batches=2", "trainer.decoder_batches=2", "trainer.updates_per_batch=2",
        )),
    ),
    "sites": (Command((*TINY, "-m", "arch=topk", "arch.k=8", "site=resid_pre,resid_post,mlp_out,attn_out,attn_z")),),
    "toys": (
        Command((
            *TOY, "-m", "source=grouped_features,sparse_sources,mnist", "arch=topk", "arch.d_sae=128", "arch.k=8",
        )),
    ),
    "eval": (
        Command((*TINY, "-m", "arch=gated,topk"), "trained"),
        Command((
            *TINY, "-m", "task=eval", "sae.path={outputs}/trained/0/sae,{outputs}/trained/1/sae",
            "eval=[vectors,splice,geometry]",
        )),
    ),
    "resume": (
        Command((*TINY, *POPULATION, *LONG), stopped=True),
        Command((*TINY, *POPULATION, *LONG)),
    ),
    "fisher_as_released": (
        Command((
            "-m", "experiment=fisher/as_released",
            "arch=released/standard,released/gated,released/jumprelu,released/topk", "model=tiny", "site.layer=1",
            "dataset=python_source", "dataset.context=128", "tracking=none", "source.tokens=2048",
            "trainer.samples=3000", "trainer.log_every=7",
            "suite.samples=512", "suite.batch_size=256", "suite.tokens=128",
        )),
    ),
    "mfr_synthetic_small": (
        Command((
            "experiment=mfr/synthetic_small", "tracking=none", "population.mutual.weight=0,24", "seed=1",
            "trainer.samples=15_000", "trainer.log_every=5", "suite.samples=2048",
        )),
    ),
    "pam_mnist_small": (
        Command((
            "experiment=splines/pam_mnist_small", "tracking=none", "seed=1,2", "trainer.samples=3600",
            "trainer.log_every=7", "trainer.encoder_batches=10", "trainer.decoder_batches=10",
        )),
    ),
    "splines_toy": (
        Command((
            "experiment=splines/toy", "tracking=none", "arch.expansion=3,20", "seed=0", "trainer.samples=2000",
            "trainer.log_every=5", "trainer.dead_after=500",
        )),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the two trees: what it is called, where it is, and which names it has others for."""

    name: str
    tree: Path
    renamed: Mapping[str, str]


class FailedError(Exception):
    """A command ended as it should not; the message says how."""


def main() -> None:
    """Run the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REF", required=True, help="the commit, tag or branch to compare with")
    parser.add_argument("--cases", type=_names, default=list(CASES), metavar="A,B", help=f"of {', '.join(CASES)}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs of both trees here")
    options = parser.parse_args()
    if options.keep and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep {options.keep} is not empty, and runs that are finished would not be made again")
    began, failed = time.monotonic(), 0
    with ExitStack() as stack:
        older = stack.enter_context(tree_of(options.against))
        kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsae-same-")))
        for tree in (older, ROOT):
            require_own_source(tree)
        sides = Side("older", older, older_names(older)), Side("newer", ROOT, {})
        print(f"{options.against} and the working tree:", flush=True)
        for name in options.cases:
            case_began = time.monotonic()
            same, line = compared(name, sides, kept.resolve() / name)
            failed += not same
            seconds = time.monotonic() - case_began
            print(f"{'same' if same else 'DIFFERENT':<10}{name:<20}{seconds:>5.0f} s  {line}", flush=True)
    print(f"{failed} of {len(options.cases)} cases differ; {time.monotonic() - began:.0f} s")
    raise SystemExit(failed > 0)


def compared(name: str, sides: Sequence[Side], folder: Path) -> tuple[bool, str]:
    """Run a case with the older tree and the newer one, and write below `folder`.

    Returns:
        Whether nothing differs, and what there is to report.
    """

    def run(side: Side) -> dict[str, Any]:
        outputs = folder / side.name
        for command in CASES[name]:
            run_command(command, side, outputs)
        return dict(numbers(outputs))

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run, side) for side in sides]
        try:
            before, after = (each.result() for each in running)
        except FailedError as error:
            return False, str(error)
    return report(before, after, sides[0].renamed)


def run_command(command: Command, side: Side, outputs: Path) -> None:
    """Run a command with the source of a side.

    Raises:
        FailedError: it ended otherwise than it should.
    """
    overrides = [older_override(each.format(outputs=outputs), side.renamed) for each in command.overrides]
    folder = outputs / command.folder
    overrides += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    outputs.mkdir(parents=True, exist_ok=True)
    with (outputs / "output.txt").open("a+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fsae.run", *overrides],
            cwd=side.tree,
            env=environment_of(side.tree) | {"FSAE_OUTPUTS": str(outputs)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        if command.stopped:
            # Where a run is stopped decides none of its numbers, so it may be at any step.
            while process.poll() is None and not (any(folder.glob("checkpoints/*.pt")) and _has_logged(folder)):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        if status == (STOPPED if command.stopped else 0):
            return
        output.seek(0)
        lines = output.read().strip().splitlines()
        said = ([line for line in lines if ERROR.search(line)] or lines or ["it printed nothing"])[-1]
    ended = "it was not to end before it was stopped" if command.stopped and status == 0 else f"exit status {status}"
    raise FailedError(f"{side.name}: {ended}: {said}")


def require_own_source(tree: Path) -> None:
    """Make sure that a process runs the source, and composes the YAML files, of its own tree.

    Raises:
        SystemExit: it does not.
    """
    source = _printed(tree, "-c", "import fsae; print(fsae.__file__)")
    search_path = _printed(tree, "-m", "fsae.run", "--info", "searchpath")
    if Path(source.strip()) != tree / "src" / "fsae" / "__init__.py" or f"file://{tree}/conf " not in search_path:
        raise SystemExit(f"{tree} does not run its own source, but {source}{search_path}")


def older_names(tree: Path) -> dict[str, str]:
    """Return the part of RENAMED that concerns a tree, which has some of the newer names if it is not so old."""
    config = yaml.safe_load(_printed(tree, "-m", "fsae.run", "--cfg", "job"))

    def concerned(old: str, new: str) -> bool:
        group, choice, name = old.partition("=")
        return (tree / "conf" / group / f"{name}.yaml").exists() if choice else not _is_in(config, new)

    return {old: new for old, new in RENAMED.items() if concerned(old, new)}


def numbers(outputs: Path) -> Iterator[tuple[str, Any]]:
    """Yield every number in all runs' folders below `outputs`, under a name that says where it is.

    A metric has one value for all its steps, a list of step and value.
    """

    def named(path: Path, name: str) -> str:
        return f"{path.relative_to(outputs)} {name}"

    for run in sorted(path.parent for path in outputs.rglob("metrics.jsonl")):
        series: dict[str, list[tuple[int, Any]]] = {}
        path = run / "metrics.jsonl"
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for name, value in record["metrics"].items():
                series.setdefault(name, []).append((record["step"], value))
        for name, values in series.items():
            if not CLOCKS.search(name):
                yield named(path, name), values
        for path in sorted(run.glob("*.json")):
            if path.stem in ("results", "sharing"):
                for name, value in _leaves(json.loads(path.read_text())):
                    if not CLOCKS.search(name):
                        yield named(path, name), value
        for path in sorted(run.rglob("*.safetensors")):
            for name, tensor in load_file(path).items():
                yield named(path, name), tensor


def report(before: Mapping[str, Any], after: Mapping[str, Any], renamed: Mapping[str, str]) -> tuple[bool, str]:
    """Compare what two runs have, whose metrics may have other names in the second one.

    Returns:
        Whether all that there was before is the same, and the first difference or how much was compared.
    """
    found_as = {name: name if name in after else newer_name(name, renamed) for name in before}
    differences = [
        f"{name}: {found}"
        for name, value in before.items()
        if (found := difference(value, after[found_as[name]]) if found_as[name] in after else "no longer there")
    ]
    added = sorted({name.partition(" ")[2] for name in after.keys() - found_as.values()})
    tail = f"; only in the working tree: {', '.join(added)}" if added else ""
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        return False, differences[0] + more + tail
    if not before:
        return False, "there is nothing to compare"
    tensors = [value for value in before.values() if isinstance(value, Tensor)]
    values = sum(len(value) if isinstance(value, list) else 1 for value in before.values()) - len(tensors)
    return True, f"{values:,} values and {len(tensors):,} tensors{tail}"


def difference(before: Any, after: Any) -> str | None:
    """Return what differs between two numbers, tensors or metrics over steps, or None."""
    if isinstance(before, Tensor):
        return _tensor_difference(before, after)
    if isinstance(before, list):
        for (step, value), (step_after, value_after) in zip(before, after, strict=False):
            if step != step_after:
                return f"logged at step {step} -> {step_after}"
            if found := difference(value, value_after):
                return f"at step {step}: {found}"
        return None if len(before) == len(after) else f"logged {len(before)} -> {len(after)} times"
    # What is not a number is not equal to itself.
    return None if before == after or repr(before) == repr(after) else f"{before!r} -> {after!r}"


def _tensor_difference(before: Tensor, after: Tensor) -> str | None:
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return f"{before.dtype} {list(before.shape)} -> {after.dtype} {list(after.shape)}"
    bits = [each.flatten().view(torch.uint8).view(before.numel(), -1) for each in (before, after)]
    differing = (bits[0] != bits[1]).any(1).nonzero().flatten().tolist()
    if not differing:
        return None
    values = [each.flatten()[differing[0]].item() for each in (before, after)]
    return f"{len(differing)} of {before.numel()} entries, at {differing[0]} {values[0]:.9g} -> {values[1]:.9g}"


def older_override(override: str, renamed: Mapping[str, str]) -> str:
    """Return an override in the words of the older tree."""
    name, equals, value = override.partition("=")
    for old, new in renamed.items():
        new_name, choice, new_value = new.partition("=")
        if override == new:
            return old
        if choice and name == new_name:
            values = [old.partition("=")[2] if each == new_value else each for each in value.split(",")]
            value = ",".join(values)
        elif not choice and (name == new or name.startswith(new + ".")):
            name = old + name.removeprefix(new)
    return name + equals + value


def newer_name(name: str, renamed: Mapping[str, str]) -> str:
    """Return the file and the name under which the working tree has a metric; `eval/0/fvu` is a member's `eval/fvu`."""
    file, _, name = name.partition(" ")
    for old, new in renamed.items():
        (group, _, metric), (new_group, slash, new_metric) = old.rpartition("/"), new.rpartition("/")
        found = re.fullmatch(rf"{re.escape(group)}/?(\d+/)?{re.escape(metric)}([.\[].*)?", name)
        if found:
            name = new_group + slash + (found[1] or "") + new_metric + (found[2] or "")
    return f"{file} {name}"


def _printed(tree: Path, *arguments: str) -> str:
    """Return what Python prints with a tree's source."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=tree, env=environment_of(tree), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def _is_in(config: Any, name: str) -> bool:
    """Return whether a config has a setting, given by its path."""
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _has_logged(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers in JSON, under the path to each; notes in words may change."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _leaves(value, f"{name}[{index}]")
    elif not isinstance(content, str):
        yield name, content


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CASES]:
        raise argparse.ArgumentTypeError(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    return names


if __name__ == "__main__":
    main()
