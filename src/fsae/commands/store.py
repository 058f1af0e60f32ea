"""List, verify and prune activation stores: python -m fsae.store list|verify|prune."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fsae.console import console
from fsae.evaluation.kept import FOLDER
from fsae.ranges import argument, between
from fsae.sources.activation_store import (
    ActivationStore,
    DamagedShard,
    folder_bytes,
    in_use,
    last_used,
    remove,
    store_folders,
)
from fsae.sources.shard import Part

_DAY = 86_400.0


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 if a shard is damaged or a store is in use, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m fsae.store", description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("FSAE_OUTPUTS", "outputs")) / "activations",
        help="folder of the stores (%(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the stores, their sizes, and when they were last used")
    verify = commands.add_parser("verify", help="compare every shard with its checksum; status 1 if one is damaged")
    verify.add_argument("names", nargs="*", metavar="STORE", help="stores to verify (default: all)")
    prune = commands.add_parser("prune", help="remove stores; a run harvests again what it needs")
    prune.add_argument("names", nargs="*", metavar="STORE", help="stores to remove")
    prune.add_argument("--all", action="store_true", help="every store")
    prune.add_argument(
        "--unused-days",
        type=argument(float, between(least=0, most=1e6)),
        metavar="DAYS",
        help="stores that no run has opened for so many days",
    )
    options = parser.parse_args(arguments)
    try:
        folders = {folder.name: folder for folder in store_folders(options.folder)}
    except OSError as error:
        print(f"{options.folder} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    names = getattr(options, "names", [])
    kept = sorted((options.folder / FOLDER).glob("*.safetensors"))
    unknown = [name for name in names if name not in folders and not (name == FOLDER and kept)]
    if unknown:
        print(f"there is no store {unknown[0]} in {options.folder}", file=sys.stderr)
        return 2
    if options.command == "list":
        return _list(options.folder, list(folders.values()), kept)
    if options.command == "verify":
        return _verify([folders[name] for name in names if name in folders] or list(folders.values()))
    if not names and not options.all and options.unused_days is None:
        parser.error("prune removes named stores, all with --all, or unused ones with --unused-days: give one of these")
    chosen = [folders[name] for name in names if name in folders] if names else list(folders.values())
    status = _prune([each for each in chosen if _is_unused(last_used(each), options.unused_days)])
    if not names or FOLDER in names:
        _prune_kept([each for each in kept if _is_unused(each.stat().st_mtime, options.unused_days)])
    return status


def _list(where: Path, folders: list[Path], texts: list[Path]) -> int:
    print(f"{'GB':>8}  {'train':>12}  {'held out':>12}  {'last used':<16}  store in {where}")
    for folder in folders:
        try:
            store = ActivationStore(folder, marked=False)
            train, held_out = (f"{_vectors(store, part):,}" for part in (Part.train, Part.held_out))
        except (ValueError, OSError):
            train = held_out = "unreadable"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used(folder)))
        state = "  (in use)" if in_use(folder) else ""
        print(f"{folder_bytes(folder) / 1e9:8.3f}  {train:>12}  {held_out:>12}  {used:<16}  {folder.name}{state}")
    of_texts = sum(path.stat().st_size for path in texts)
    if texts:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(path.stat().st_mtime for path in texts)))
        print(f"{of_texts / 1e9:8.3f}  {'':>12}  {'':>12}  {used:<16}  {FOLDER} (texts and baselines)")
    print(f"{(sum(map(folder_bytes, folders)) + of_texts) / 1e9:8.3f}  in all")
    return 0


def _verify(folders: list[Path]) -> int:
    all_whole = True
    for folder in folders:
        try:
            store = ActivationStore(folder, marked=False)
            shards, foreign, unrecorded = store.shards(), store.foreign(), store.unrecorded()
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            all_whole = False
            continue
        whole = 0
        for part, number in shards:
            try:
                store.read(part, number)
                whole += 1
            except DamagedShard as damage:
                print(f"{damage}; the next run that needs it harvests it again", file=sys.stderr)
            except OSError as error:
                print(f"{store.path(part, number)} cannot be read: {error.strerror}", file=sys.stderr)
        for path in foreign:
            print(f"{path} is no part of the store; nothing reads it", file=sys.stderr)
        for path in unrecorded:
            print(f"{path} has no record; nothing reads it", file=sys.stderr)
        print(f"{folder.name}: {whole} of {len(shards)} shards are whole")
        all_whole = all_whole and whole == len(shards)
    return 0 if all_whole else 1


def _prune(folders: list[Path]) -> int:
    exit_status = 0
    for folder in folders:
        size = folder_bytes(folder)
        try:
            removed = remove(folder)
        except OSError as error:
            print(f"{folder.name} cannot be removed: {error.filename}: {error.strerror}", file=sys.stderr)
            exit_status = 1
            continue
        if removed:
            print(f"{folder.name}: {size / 1e9:.3g} GB removed")
        else:
            print(f"{folder.name} is in use by a run; it is not removed", file=sys.stderr)
            exit_status = 1
    return exit_status


def _prune_kept(files: list[Path]) -> None:
    """Remove kept findings of evaluations. One that reads a file meanwhile keeps it open."""
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink(missing_ok=True)
    if files:
        print(f"{FOLDER}: {size / 1e9:.3g} GB removed")


def _is_unused(used: float, days: float | None) -> bool:
    return days is None or time.time() - used > days * _DAY


def _vectors(store: ActivationStore, part: Part) -> int:
    records = [store.record(part, number) for each, number in store.shards() if each is part]
    return sum(record.count for record in records if record is not None)
