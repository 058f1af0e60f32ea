"""The pages of latents: their size per latent, the time to the first table, and from one latent to the next.

    python -m benchmarks.latent_pages [--latents 16384 131072] [--steps 20]

A made-up store has 72 hits per alive latent in windows of 24 positions on either side of the peak, from ten million
tokens of 50,000 kinds with the entropy of English; every tenth latent is dead. Chromium opens its pages as a file, in a
window of 1280 x 1000. Times include drawing:

- first table: from the start of the navigation until the table of all latents is drawn,
- next: from a key to the drawn page of the next latent, in the table's order,
- jump: from a new address to the drawn page of a latent whose shard is not in memory,
- sort and search: from the change until the table is drawn.

Medians of `--steps`, and the largest.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine_name
from fsae.analysis.latent_pages import PageSizes, write_latent_pages
from fsae.analysis.origin import Origin
from fsae.ranges import COUNT, argument
from tests.analysis.latent_stores import write_text_store
from tests.browser.conftest import QUIET, find_program
from tests.browser.page import Page

CONTEXTS, VOCABULARY = 80_000, 50_000
# Notes when the table is drawn: in the second frame after it is part of the page.
WATCH = """
const watch = {
  frame: () => new Promise(requestAnimationFrame),
  async drawn(when) { while (!when()) await this.frame(); await this.frame(); return performance.now(); },
  async since(act, when) { const begin = performance.now(); act(); return await this.drawn(when) - begin; },
};
watch.ready = watch.drawn(() => document.documentElement && "ready" in document.documentElement.dataset);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=argument(int, COUNT), nargs="+", default=[16_384, 131_072])
    parser.add_argument("--steps", type=argument(int, COUNT), default=20)
    options = parser.parse_args()
    program = find_program()
    if program is None:
        raise SystemExit("there is no Chromium; on Debian: apt-get install chromium")
    print(machine_name("cpu"))
    for latents in options.latents:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), latents, options.steps, program)


def measure(folder: Path, latents: int, steps: int, program: str) -> None:
    store = write_text_store(folder / "latents", latents, CONTEXTS, VOCABULARY)
    begin = time.perf_counter()
    page = write_latent_pages(store, store.folder, Origin(f"{latents} latents"))
    seconds = time.perf_counter() - begin
    data = [file.stat().st_size for file in page.parent.glob("pages-*/*.js")]
    size = (page.stat().st_size + sum(data)) / latents
    print(f"{latents:,} latents: written in {seconds:.0f} s, {size / 1000:.2f} kB per latent, {len(data)} files")
    for name, times in times_of(page.as_uri(), latents, steps, folder, program).items():
        print(f"    {name:12} {statistics.median(times):5.0f} ms, at most {max(times):.0f} ms")


def times_of(url: str, latents: int, steps: int, folder: Path, program: str) -> dict[str, list[float]]:
    """Return milliseconds by name."""
    times: dict[str, list[float]] = {}
    with Page(program, folder / "profile", *QUIET) as page:
        page.resize(1280, 1000)
        page.run_first(WATCH)
        times["first table"] = []
        for _ in range(5):
            page.open(url)
            times["first table"].append(page.ask("watch.ready"))

        def times_since(act: str, when: str) -> float:
            return page.ask(f"watch.since(() => {{ {act} }}, () => {when})")

        shown = "document.documentElement.dataset.shown"
        times["sort"] = [
            times_since(f"document.querySelectorAll('#rows thead button')[{column}].click()", "true")
            for column in (3, 4, 5, 1)
        ]
        times["search"] = [
            times_since(f"pages.selection.search = '{text}'; pages.overview.changed()", "true")
            for text in ("word 5", "venro", "k", "")
        ]
        page.ask("pages.selection.reset(); pages.overview.changed()")
        times["jump"] = []
        for number in range(steps):
            # Every shard once.
            latent = number * latents // steps + PageSizes().latents_per_shard // 2
            times["jump"].append(times_since(f"location.hash = '#latent={latent}'", f"{shown} === '{latent}'"))
        times["next"] = []
        for _ in range(steps):
            before = page.ask(shown)
            times["next"].append(times_since("pages.step(1)", f"{shown} !== '{before}'"))
    return times


if __name__ == "__main__":
    main()
