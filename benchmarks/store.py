"""The activation store's MB/s, compared with plain sequential disk I/O on the same disk in the same run.

    python -m benchmarks.store [--folder FOLDER] [--vectors 250000] [--width 576] [--shards 4] [--repeats 5]

Writing: shards in memory, until the disk confirms them (fsync), compared with one plain write of as many bytes.
Reading: shuffled batches as in training, from files that are not in memory, compared with one plain sequential read of
the same files. Each pair is measured one after the other, `--repeats` times; medians and the median ratio are printed.
Files are dropped from memory with posix_fadvise before each reading.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.ranges import COUNT, argument
from fsae.sources.activation_store import ActivationStore
from fsae.sources.activations import ActivationSource
from fsae.sources.corpus import Corpus
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.harvest import Harvester
from fsae.sources.layout import Sites, layout_of
from fsae.sources.passes import Passes
from fsae.sources.shard import Extent, Part, Shard
from fsae.sources.shard_reader import ShardReader

BATCH = 1024
BLOCK = 1 << 22
SITE = Site(name=SiteName.resid_mid, layer=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--vectors", type=argument(int, COUNT), default=250_000, help="vectors per shard")
    parser.add_argument("--width", type=argument(int, COUNT), default=576)
    parser.add_argument("--shards", type=argument(int, COUNT), default=4)
    parser.add_argument("--repeats", type=argument(int, COUNT), default=5)
    options = parser.parse_args()
    numbers = torch.arange(options.vectors)
    shard = Shard(
        activations=torch.randn(options.vectors, options.width),
        tokens=numbers.int(),
        documents=numbers.int(),
        labels=None,
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        writing = [
            write_both(folder / "store", folder / "plain", shard, options.shards, turn)
            for turn in range(options.repeats)
        ]
        reading = [read_both(folder / "store", shard, options.shards, turn) for turn in range(options.repeats)]
    print(f"{options.shards} shards of {options.vectors:,} x {options.width} float32, medians of {options.repeats}")
    for what, pairs in (("write", writing), ("read", reading)):
        ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{what:>6}: store {ours:6.0f} MB/s, plain {plain:6.0f} MB/s, ratio {ratio:.2f}")


def write_both(store_folder: Path, plain: Path, shard: Shard, shards: int, turn: int) -> tuple[float, float]:
    """Return MB/s of writing shards to a store, and of the same bytes to plain files; they alternate in going first."""

    def to_store() -> None:
        store = ActivationStore(store_folder, {})
        store.create(d_in=shard.activations.shape[1], prepends_bos=False)
        for number in range(shards):
            store.discard(Part.train, number)
            facts = {"text": None, "text_ended": False, "distinct": len(shard), "skipped_rows": 0, "label_names": []}
            store.write(Part.train, number, shard, **facts)
        store.close()

    data = shard.activations.numpy().tobytes()

    def to_plain() -> None:
        for number in range(shards):
            with plain.with_suffix(f".{number}").open("wb", buffering=0) as file:
                for begin in range(0, len(data), BLOCK):
                    file.write(data[begin : begin + BLOCK])
                os.fsync(file.fileno())

    speeds = {}
    for write in (to_store, to_plain)[:: 1 if turn % 2 == 0 else -1]:
        speeds[write] = shards * len(data) / 1e6 / seconds(write)
        # Neither side overwrites files in place.
        for path in plain.parent.glob("plain.*"):
            path.unlink()
    return speeds[to_store], speeds[to_plain]


def read_both(folder: Path, shard: Shard, shards: int, turn: int) -> tuple[float, float]:
    """Return MB/s of one epoch of shuffled batches from a store on disk, and of reading its files sequentially; they
    alternate in going first."""
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)

    def through_batches() -> None:
        tokens = shards * len(shard)
        extent = Extent(tokens={Part.train: tokens, Part.held_out: 0}, shard_tokens=len(shard))
        store, width = ActivationStore(folder), shard.activations.shape[1]
        model = ModelSettings(package=Package.tiny)
        # All shards are in the store, so that the corpus is never opened.
        corpus = Corpus(model, DatasetSettings(format=DatasetFormat.python_source))
        harvester = Harvester(corpus, len(shard), lambda: None)
        shards_read = ShardReader(harvester, [[SITE]], {SITE: store}, extent, room=None)
        with ActivationSource(
            shards_read,
            sites=Sites((SITE,), (SITE,)),
            input_layout=layout_of([SITE], [width]),
            target_layout=layout_of([SITE], [width]),
            seed=0,
            training_tokens=tokens,
            device=torch.device("cpu"),
            passes=Passes.of(model, context=128),
            max_norm_multiple=None,
        ) as source:
            batches = source.batches(BATCH)
            for _ in range(tokens // BATCH):
                next(batches)

    def in_a_row() -> None:
        buffer = bytearray(BLOCK)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    speeds = {}
    for read in (through_batches, in_a_row)[:: 1 if turn % 2 == 0 else -1]:
        drop(files)
        speeds[read] = size / 1e6 / seconds(read)
    return speeds[through_batches], speeds[in_a_row]


def drop(files: list[Path]) -> None:
    """Drop the files from memory, so that they are read from the disk next time."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
