"""Training steps of fsae and of other libraries (peers), on identical batches from identical weights.

    make bench                                                # or, if the environments exist,
    python -m benchmarks.peers                                # 768 -> 12,288, batch 4,096, 64 active latents
    python -m benchmarks.peers --d-in 2304 --d-sae 65536 --batch 8192 --peers sae_lens      # with a GPU
    python -m benchmarks.peers --arch topk --peers sparsify --repeats 5
    python -m benchmarks.peers --arch matching_pursuit --batch 1024 --widths    # a step of SAELens takes half a minute
    OMP_NUM_THREADS=1 python -m benchmarks.peers --cpu-time                     # for a machine that is busy

Every library runs in its own environment, which is made if it is missing. First all are checked to compute the same: a
peer whose error or l0 after a few steps differs from fsae's has a note in the table and no times. Steps of matching
pursuit are checked in float64 and then timed in float32. The page and the plot are written to --out after every
comparison.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import machine_name
from benchmarks.peers.comparison import ARCHITECTURES, PEERS, RECIPES, RECTIFIED, Row, compare, growth, write_vectors
from benchmarks.peers.job import Job
from benchmarks.peers.table import cells, draw, markdown
from benchmarks.step import add_shape
from fsae.ranges import COUNT, argument


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--arch", nargs="*", choices=(*ARCHITECTURES, *RECIPES), default=(*ARCHITECTURES, *RECIPES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument(
        "--widths",
        nargs="*",
        type=argument(int, COUNT),
        default=[4096, 8192, 16_384, 32_768, 65_536],
        help="values of d_sae for the table of growth",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--cpu-time", action="store_true", help="the processes' own time instead of the clock's")
    options = parser.parse_args()
    machine, clock = machine_name(options.device), "time"
    if options.cpu_time:
        machine, clock = f"{machine}, time of each process itself", "cpu_time"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fsae-peers-") as folder:
        base = Job.of_fsae(
            Path(folder),
            d_in=options.d_in,
            d_sae=options.d_sae,
            k=options.k,
            batch=options.batch,
            lr=1e-4,
            device=options.device,
            threads=torch.get_num_threads(),
        )
        vectors = write_vectors(base)
        grown: dict[str, dict[int, float]] = {}

        def write() -> None:
            options.out.mkdir(parents=True, exist_ok=True)
            page = markdown(machine, base, options.repeats, rows, grown)
            (options.out / "peers.md").write_text(page)
            draw(options.out / "peers.png", machine, rows)

        starts = [(name, False) for name in options.arch] + [(name, True) for name in options.arch if name in RECTIFIED]
        for architecture, dense in starts:
            for peer in options.peers:
                for row in compare(base, peer, architecture, dense, vectors, options.repeats, clock):
                    rows.append(row)
                    print(" | ".join(cells(row, [])), flush=True)
                    write()
        if options.widths:
            grown |= growth(base, options.widths, options.repeats, clock)
            write()
    print((options.out / "peers.md").read_text())


if __name__ == "__main__":
    main()
