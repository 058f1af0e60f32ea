"""Steer a language model by one latent: python -m fsae.steer RUN LATENT --prompt TEXT [--strengths 1 2 4]"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from fsae.console import console
from fsae.language_models.interventions import Add, Clamp, Edit, Scale, Scope, Unit
from fsae.ranges import COUNT, SEED, argument
from fsae.surface.dictionary import load
from fsae.surface.steering import STRENGTHS, steer


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print plain and steered text side by side, and a table of the strengths; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsae.steer",
        description="Steer the language model of a run by one latent: plain and steered text side by side, and a table "
        "of the strengths. The target effect is the change of log p(target) and KL the divergence from the plain "
        "model, both on the plain text; perplexity is that of the steered text under the plain model; repetition is "
        "the share of its n-grams that occurred before.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or of a dictionary in SAELens' format")
    parser.add_argument("latent", type=int, metavar="LATENT", help="index of the latent")
    parser.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be given several times")
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=STRENGTHS,
        metavar="S",
        help="strengths, or factors of --operation scale (default: 0.5 1 2 4); negative ones push away",
    )
    parser.add_argument("--operation", choices=("add", "clamp", "scale"), default="add", help="default: add")
    parser.add_argument(
        "--unit",
        choices=get_args(Unit),
        default="largest",
        help="of strengths: the latent's largest activation (default), or absolute",
    )
    parser.add_argument(
        "--largest", type=float, metavar="CODE", help="the latent's largest activation, if no run of fsae knows it"
    )
    parser.add_argument(
        "--scope", choices=get_args(Scope), default="all", help="the positions that are edited (default: all)"
    )
    parser.add_argument("--after", metavar="TOKEN", help="only positions after this token")
    parser.add_argument(
        "--decay",
        type=float,
        default=1.0,
        metavar="D",
        help="factor of the edit from position to position (default: 1)",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TOKEN",
        help="a token of the target effect, with its space, as in ' Paris'; may be given several times (default: the "
        "ten tokens whose logits the latent raises most)",
    )
    parser.add_argument("--tokens", type=argument(int, COUNT), default=50, metavar="N", help="default: 50")
    parser.add_argument("--seed", type=argument(int, SEED), default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="default: 1; 0 for the likeliest token"
    )
    parser.add_argument("--ngram", type=argument(int, COUNT), default=3, metavar="N", help="default: 3")
    parser.add_argument("--member", type=int, metavar="N", help="member of a population")
    parser.add_argument(
        "--prepend-bos",
        action=argparse.BooleanOptionalAction,
        help="begin prompts with a BOS (default: as the tokenizer)",
    )
    options = parser.parse_args(arguments)
    try:
        steering = steer(
            load(options.run, member=options.member),
            _edit(options),
            options.prompt,
            strengths=options.strengths,
            targets=options.target,
            tokens=options.tokens,
            seed=options.seed,
            temperature=options.temperature,
            ngram=options.ngram,
            largest=None if options.largest is None else {options.latent: options.largest},
            prepend_bos=options.prepend_bos,
        )
    except (ValueError, OSError) as error:
        print(f"fsae.steer: {error}", file=sys.stderr)
        return 2
    print(steering)
    return 0


def _edit(options: argparse.Namespace) -> Edit:
    """Return the edit that the command line describes; its strength is replaced by each of the list."""
    where = {"scope": options.scope, "after": options.after, "decay": options.decay}
    if options.operation == "scale":
        return Scale(options.latent, by=1.0, **where)
    kind = Add if options.operation == "add" else Clamp
    return kind(options.latent, 1.0, unit=options.unit, **where)
