"""The dictionary with the fewest bits at an error: `python -m experiments.shortest SWEEP... --fvu 0.15`.

Reads the curves of `eval=[mdl]`. Of each run the coarsest bins whose fvu is low enough count; of each architecture and
penalty the run with the fewest bits is printed, with its width, its l0 and its seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fsae.analysis.runs import collect_folders


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.shortest", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP_OR_RUN")
    parser.add_argument("--fvu", type=float, required=True, help="the largest fvu of rounded codes")
    options = parser.parse_args(arguments)
    try:
        print("\n".join(table(options.folders, options.fvu)))
    except ValueError as error:
        parser.error(str(error))


def table(folders: Sequence[Path], fvu: float) -> list[str]:
    """Return the lines of the table.

    Raises:
        ValueError: no run was measured by `mdl`, or none reaches the error.
    """
    runs = collect_folders(folders)
    found: dict[tuple[str, str], tuple[float, str]] = {}
    measured = 0
    for row in runs.to_dict("records"):
        file = Path(str(row["folder"])) / "results.json"
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if "mdl_curves" not in results:
            continue
        measured += 1
        bits = bits_at(results["mdl_curves"], fvu)
        arm = (str(row["arch"]), f"{row.get('loss.penalty')}, frozen {row.get('trainer.frozen')}")
        if bits is None or bits >= found.get(arm, (float("inf"),))[0]:
            continue
        width = row.get("arch.d_sae") or f"{row.get('arch.expansion')} x d_in"
        found[arm] = bits, f"| {width} | {results['eval/l0']:.1f} | {bits:.1f} | {row.get('seed')} |"
    if not measured:
        raise ValueError("no run was measured by mdl: python -m fsae.evaluate SWEEP 'eval=[vectors,mdl]'")
    if not found:
        raise ValueError(f"none of the {measured} runs has an fvu of {fvu} or less with rounded codes; raise --fvu")
    lines = ["| architecture | penalty, control | latents | l0 | bits | seed |", "|---|---|---:|---:|---:|---:|"]
    return lines + [f"| {arch} | {other} {line}" for (arch, other), (_, line) in sorted(found.items())]


def bits_at(curve: dict[str, list[float]], fvu: float) -> float | None:
    """Return the bits of the coarsest bins whose fvu is low enough; None if there are none."""
    return next((bits for bits, error in zip(curve["bits"], curve["fvu"], strict=True) if error <= fvu), None)


if __name__ == "__main__":
    main()
