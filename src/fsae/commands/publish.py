"""Publish a finished run: python -m fsae.publish RUN --repo OWNER/NAME, or in the layouts of others."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fsae.console import console
from fsae.publishing.circuit_tracer import write_circuit_tracer
from fsae.publishing.crosscoder_learning import write_crosscoder
from fsae.publishing.hub_repository import push
from fsae.publishing.neuronpedia import write_neuronpedia
from fsae.publishing.neuronpedia_upload import write_upload
from fsae.publishing.publication import Publication, publication_of
from fsae.publishing.sae_bench import configuration_of, misread, write_sae_bench
from fsae.publishing.sae_dashboard import write_sae_dashboard
from fsae.publishing.source_set import SourceSet, set_name
from fsae.surface.dictionary import Dictionary, load


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Publish what the command line asks for; returns 0, 1 if the hub gives no answer, 2 for bad input."""
    parser = command_line()
    options = parser.parse_args(arguments)
    options.run = options.runs[0]
    exports = (options.neuronpedia, options.neuronpedia_upload, options.saedashboard)
    of_one_run = (*exports, options.saebench, options.crosscoder_learning)
    folders = (*of_one_run, options.circuit_tracer)
    if options.repo is None and not any(folders):
        parser.error(
            "name a target: --repo, --neuronpedia, --neuronpedia-upload, --saedashboard, --saebench, --circuit-tracer "
            "or --crosscoder-learning"
        )
    if len(options.runs) > 1 and (options.repo is not None or any(of_one_run)):
        parser.error("only --circuit-tracer takes several runs; name one")
    if options.dry_run and any(folders):
        parser.error("--dry-run is for --repo alone; the other targets are folders of this machine")
    try:
        publication = None
        if options.repo is not None:
            publication = publication_of(
                options.run,
                options.repo,
                folder=options.folder,
                licence=options.license,
                pages=options.pages,
                member=options.member,
                as_part=options.add,
            )
        if options.dry_run:
            assert publication is not None
            _show(publication)
            return 0
        if any(exports):
            _export(options, publication)
        if options.saebench is not None:
            _export_numbers(options)
        if options.circuit_tracer is not None:
            layers = write_circuit_tracer(options.runs, options.circuit_tracer, options.member)
            print(f"circuit-tracer:      {options.circuit_tracer} ({layers} layers)")
        if options.crosscoder_learning is not None:
            kind = write_crosscoder(options.run, options.crosscoder_learning, options.member)
            print(f"crosscoder_learning: {options.crosscoder_learning} ({kind})")
        if publication is not None:
            address = push(
                publication.repo,
                publication.files,
                publication.folder,
                f"Publish {options.run.resolve().name} with fsae",
                private=options.private,
                add=options.add,
            )
            print(f"pushed:              {address}")
    except (ValueError, OSError) as error:
        print(f"fsae.publish: {error}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    return 0


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m fsae.publish",
        description="Publish a finished run: push its dictionary and a model card to a repository on the Hugging Face "
        "hub, or write the facts about its latents in the layouts of Neuronpedia and SAEDashboard, its numbers in "
        "SAEBench's, or its weights in those of circuit-tracer and crosscoder_learning.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a finished run; for --circuit-tracer a sweep over layers, or the runs of all layers",
    )
    parser.add_argument("--member", type=int, metavar="N", help="member of a population (default: all, with --repo)")
    hub = parser.add_argument_group("Hugging Face hub")
    hub.add_argument("--repo", metavar="OWNER/NAME", help="push to this model repository; it is made if needed")
    hub.add_argument("--dry-run", action="store_true", help="push nothing; list the files and print the card")
    hub.add_argument("--license", metavar="ID", help="the licence's identifier on the hub, such as mit")
    hub.add_argument("--private", action="store_true", help="make a new repository private")
    hub.add_argument("--pages", action="store_true", help="push the pages of the latents, too")
    hub.add_argument("--folder", metavar="NAME", help="folder in the repository (default: the site's hook)")
    hub.add_argument(
        "--add", action="store_true", help="put the folder next to other files of the repository, with its card inside"
    )
    exports = parser.add_argument_group("latents in other layouts")
    exports.add_argument("--neuronpedia", type=Path, metavar="FOLDER", help="write Neuronpedia's bulk folder below it")
    exports.add_argument(
        "--neuronpedia-upload", type=Path, metavar="FOLDER", help="write the bodies of Neuronpedia's upload into it"
    )
    exports.add_argument(
        "--saedashboard", type=Path, metavar="FOLDER", help="write SAEDashboard's folder of batch files below it"
    )
    exports.add_argument(
        "--model", metavar="ID", help="Neuronpedia's id of the language model (default: the last part of its name)"
    )
    exports.add_argument("--set", metavar="NAME", help="name of the source set (default: made of the run's name)")
    exports.add_argument("--creator", default="", metavar="NAME", help="name of the author")
    exports.add_argument("--description", default="", metavar="TEXT", help="one line about the source set")
    exports.add_argument("--url", help="address of a page about the dictionary")
    exports.add_argument(
        "--labels", action="store_true", help="write the latents' labels as explanations (Neuronpedia's two layouts)"
    )
    numbers = parser.add_argument_group("numbers in other layouts")
    numbers.add_argument("--saebench", type=Path, metavar="FOLDER", help="write SAEBench's JSON files below it")
    weights = parser.add_argument_group("weights in other layouts")
    weights.add_argument(
        "--circuit-tracer", type=Path, metavar="FOLDER", help="write circuit-tracer's transcoders of all layers into it"
    )
    weights.add_argument(
        "--crosscoder-learning",
        type=Path,
        metavar="FOLDER",
        help="write a crosscoder into it as crosscoder_learning does",
    )
    return parser


def _show(publication: Publication) -> None:
    sizes = list(publication.sizes())
    for path, size in sizes:
        print(f"{size:>14,}  {path}")
    print(f"{sum(size for _, size in sizes):>14,}  bytes in {len(sizes)} files; nothing is pushed")
    print(f"\n{publication.card}:\n\n{publication.text}")


def _export(options: argparse.Namespace, publication: Publication | None) -> None:
    dictionary = load(options.run, member=options.member)
    source = _source_set(options, dictionary, publication)
    store, weights = dictionary.latent_store, dictionary.W_dec.numpy()
    if options.saedashboard is not None:
        print(f"SAEDashboard:        {write_sae_dashboard(store, weights, source, options.saedashboard)}")
    if options.neuronpedia is not None:
        now = datetime.now(UTC).replace(microsecond=0)
        written = write_neuronpedia(store, weights, source, options.neuronpedia, now, options.labels)
        print(f"Neuronpedia:         {written}")
    if options.neuronpedia_upload is not None:
        left_out = write_upload(store, weights, source, options.neuronpedia_upload, options.labels)
        noted = f" ({len(left_out)} latents are never on and left out)" if left_out else ""
        print(f"Neuronpedia upload:  {options.neuronpedia_upload}{noted}")


def _export_numbers(options: argparse.Namespace) -> None:
    sae = configuration_of(load(options.run, options.member))
    written = write_sae_bench(options.run, sae, options.saebench, options.member)
    for path in written:
        print(f"SAEBench:            {path}")
    if (part := misread(options.saebench)) is not None:
        print(
            f"fsae.publish: SAEBench's plots read the kind of a file from its path, and {part!r} is in "
            f"{options.saebench.resolve()}; move the files before they are read",
            file=sys.stderr,
        )


def _source_set(options: argparse.Namespace, dictionary: Dictionary, publication: Publication | None) -> SourceSet:
    site, name = dictionary.site, options.model or dictionary.provenance.model_name
    if len(dictionary.provenance.hooks_out) > 1:
        raise ValueError(
            f"{options.run} writes {len(dictionary.provenance.hooks_out)} sites, and in these layouts a latent has one "
            "direction at one site; --repo publishes it, and --circuit-tracer or --crosscoder-learning may"
        )
    if site is None:
        raise ValueError(
            f"{options.run} was not trained on a language model's activations, and these layouts show text; only "
            "--repo publishes it"
        )
    if name is None:
        raise ValueError(f"{options.run} does not name its language model; give Neuronpedia's id of it, with --model")
    return SourceSet(
        model=options.model or name.rstrip("/").rpartition("/")[2].lower(),
        name=options.set or set_name(options.run.resolve().name),
        site=site,
        written=dictionary.written_site,
        creator=options.creator,
        description=options.description,
        url=options.url,
        dataset=dictionary.latent_store.meta.dataset or "",
        hub_repo=options.repo,
        hub_folder=None if publication is None else publication.folder,
    )
