"""Look at latents: python -m fsae.latents RUN [--tokens N] [--prompt TEXT], or RUN RUN for two side by side."""

import argparse
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from fsae.configuration.overrides import quoted
from fsae.console import console
from fsae.export.between import split_name
from fsae.export.dictionary_files import is_dictionary, read_provenance, stored_at
from fsae.language_models.sites import Site
from fsae.outputs.latent_store import META, views_folder
from fsae.outputs.run_folder import RunFolder
from fsae.ranges import COUNT, POSITIVE, argument


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pages that the command line asks for; returns 0, or 2 for bad input.

    Raises:
        SystemExit: a pass over text failed; its status is that of `fsae.evaluate` or `fsae.run`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fsae.latents",
        description="Find what every latent means in one pass over text, and write pages that open without a server.",
        epilog="Further arguments are overrides, such as eval.latents.top=50 for a run, or model=gpt2 "
        "dataset=text_files dataset.path=FOLDER for a dictionary in SAELens' format.",
    )
    parser.add_argument(
        "what", nargs="+", metavar="RUN|DICTIONARY|OVERRIDE", help="one folder, or two to compare; overrides"
    )
    parser.add_argument("--tokens", type=argument(int, COUNT), metavar="N", help="tokens of text (default: 100,000)")
    parser.add_argument("--train-text", action="store_true", help="read training text; without it, held-out text")
    parser.add_argument(
        "--workers", type=argument(int, COUNT), metavar="N", help="processes that read text (default: 1)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="show which latents are on at each token of a text of yours")
    parser.add_argument(
        "--member",
        type=int,
        action="append",
        metavar="N",
        help="member of a population, for --prompt, --explain or a comparison; twice, for each of two populations",
    )
    parser.add_argument(
        "--explain", metavar="URL", help="explain latents by the model of an OpenAI-compatible endpoint"
    )
    parser.add_argument("--model", metavar="NAME", help="the model's name at the endpoint")
    parser.add_argument(
        "--explain-latents",
        type=argument(int, COUNT),
        default=100,
        metavar="N",
        help="how many (default: 100)",
    )
    parser.add_argument(
        "--explain-tokens", type=argument(int, COUNT), metavar="N", help="the most tokens of the model's answer"
    )
    parser.add_argument(
        "--explain-timeout", type=argument(float, POSITIVE), metavar="SECONDS", help="the longest time for one answer"
    )
    parser.add_argument("--prompts", metavar="FILE", help="a template of prompts in place of fsae's own")
    parser.add_argument("--dry-run", action="store_true", help="with --explain: print the cost and ask nothing")
    parser.add_argument("--config-dir", help="a folder of further YAML files that the run was started with")
    options = parser.parse_intermixed_args(arguments)
    overrides = [each for each in options.what if "=" in each and not Path(each).exists()]
    folders = [Path(each).absolute() for each in options.what if each not in overrides]
    try:
        with_prompt, with_explain = options.prompt is not None, options.explain is not None
        if len(folders) not in (1, 2) or (len(folders) == 2 and with_prompt):
            raise ValueError("name one folder of a run or of a dictionary, or two runs to compare them")
        if with_explain != (options.model is not None) or (with_explain and (with_prompt or len(folders) > 1)):
            raise ValueError("--explain URL needs --model NAME and one run, without --prompt")
        members = _members(folders, options.member or [])
        overrides += _sizes(options)
        if len(folders) == 1 and not with_prompt and not with_explain:
            _survey(folders[0], overrides, options.config_dir)
            return 0
        for folder in folders:
            _check_run(folder)
            # There may have been a pass.
            if overrides or not _has_store(folder):
                _survey(folder, overrides, options.config_dir)
        if with_explain:
            print(f"latents:     {_explained(folders[0], members[0], options)}")
        elif with_prompt:
            print(f"prompt:      {_prompt_page(folders[0], members[0], options.prompt)}")
        else:
            print(f"comparison:  {_comparison(folders, members)}")
    except (ValueError, OSError) as error:
        print(f"fsae.latents: {error}", file=sys.stderr)
        return 2
    return 0


def _members(folders: Sequence[Path], given: Sequence[int]) -> list[int | None]:
    """Return the member that is meant in each folder.

    Raises:
        ValueError: more members are given than folders.
    """
    if len(given) > len(folders):
        raise ValueError(f"--member is given {len(given)} times for {len(folders)} folders; give it once per folder")
    if len(given) == len(folders) or not given:
        return [*given, *[None] * (len(folders) - len(given))]
    # One for two folders, of which one may be no population.
    several = [RunFolder(folder).sae.joinpath("0").is_dir() for folder in folders]
    return [given[0] if own or not any(several) else None for own in several]


def _sizes(options: argparse.Namespace) -> list[str]:
    """Return the overrides that the options stand for."""
    given = {
        "eval.latents.tokens": options.tokens,
        "eval.latents.workers": options.workers,
        "eval.latents.text": "train" if options.train_text else None,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _check_run(folder: Path) -> None:
    if is_dictionary(folder):
        raise ValueError(
            f"{folder} is a dictionary; look at its latents first, with python -m fsae.latents "
            f"{folder} model=... dataset=..., and name the run's folder that this prints"
        )


def _has_store(folder: Path) -> bool:
    return any((each / META).is_file() for each in RunFolder(folder).latent_stores)


def _survey(folder: Path, overrides: Sequence[str], config_dir: str | None) -> None:
    """Survey the latents of a run in its folder, or those of a dictionary in SAELens' format in a new run."""
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder; name the folder of a run or of a dictionary")
    directories = [] if config_dir is None else [f"--config-dir={config_dir}"]
    if is_dictionary(folder):
        own = ["task=eval", f"sae.path={quoted(folder)}", "eval=[latents]", *place_of(folder, overrides)]
        sys.argv = ["fsae.run", *directories, *own, *overrides]
        from fsae.commands.run import main as run

        return run()
    from fsae.commands.evaluate import main as evaluate

    try:
        evaluate([str(folder), "eval=[latents]", *overrides, *directories])
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    for page in RunFolder(folder).latent_pages:
        print(f"latents:     {page}")
    return None


def place_of(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that choose the site and the layout of a dictionary, if its folder names them.

    A group that the user chooses is left to the user.
    """
    provenance = read_provenance(folder)
    elsewhere = provenance.writes_elsewhere
    read = [Site.of_hook(hook, provenance.hook_head_index, elsewhere) for hook in provenance.hooks_in]
    if not read:
        return []
    found = [] if any(each.startswith("site") for each in overrides) else read[0].overrides
    _, kind = split_name(stored_at(folder).config)
    if kind is None or any(each.startswith("layout=") for each in overrides):
        return found
    found.append(f"layout={kind.name}")
    # A crosscoder of two models has each layer twice, and the user names the models.
    layers = list(dict.fromkeys(site.layer for site in read))
    if len(layers) > 1:
        found.append(f"layout.layers=[{','.join(map(str, layers))}]")
    elif len(read) > 1:
        found.append("layout.layers=[]")
    if elsewhere:
        found.append(f"layout.target={Site.of_hook(provenance.hooks_out[0]).name.value}")
    return found


def _prompt_page(run: Path, member: int | None, text: str) -> Path:
    from fsae.analysis.latent_pages import PAGE, write_prompt_page
    from fsae.analysis.origin import Origin
    from fsae.surface.dictionary import load
    from fsae.surface.prompt import view_prompt

    dictionary = load(run, member=member)
    if dictionary.language_model is None:
        raise ValueError(f"{run} did not read a language model, so its latents cannot read a text")
    store = dictionary.latent_store
    view = view_prompt(dictionary, text, dictionary.language_model, store)
    folder, name = views_folder(store.folder), f"prompt-{blake2b(text.encode(), digest_size=4).hexdigest()}.html"
    return write_prompt_page(folder, view, Origin.of(run, member), store, name, f"../{store.folder.name}/{PAGE}")


def _explained(run: Path, member: int | None, options: argparse.Namespace) -> Path:
    from fsae.analysis.latent_pages import PAGE, write_latent_pages
    from fsae.analysis.origin import Origin
    from fsae.surface.dictionary import load
    from fsae.surface.explanations import explain

    limits = {"answer_tokens": options.explain_tokens, "timeout": options.explain_timeout}
    explain(
        run,
        options.explain,
        options.model,
        member=member,
        latents=options.explain_latents,
        prompts=options.prompts,
        dry_run=options.dry_run,
        **{name: value for name, value in limits.items() if value is not None},
    )
    store = load(run, member=member).latent_store
    if options.dry_run:
        return store.folder / PAGE
    return write_latent_pages(store, store.folder, Origin.of(run, member))


def _comparison(runs: Sequence[Path], members: Sequence[int | None]) -> Path:
    from fsae.analysis.latent_pages import write_comparison_pages
    from fsae.analysis.origin import Origin
    from fsae.latents.matches import matched_latents
    from fsae.surface.dictionary import load

    one, other = (load(run, member=member) for run, member in zip(runs, members, strict=True))
    matched = matched_latents(one.W_dec, other.W_dec)
    name = f"beside-{runs[1].name}" + ("" if members[1] is None else f"-{members[1]}")
    folder = views_folder(one.latent_store.folder) / name
    first, second = (Origin.of(run, member) for run, member in zip(runs, members, strict=True))
    return write_comparison_pages(one.latent_store, other.latent_store, matched, folder, (first, second))
