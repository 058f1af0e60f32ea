"""`stability`: the latents that a sweep's jobs find again if only the seed differs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends
from fsae.evaluation.agreement import SAME
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import digest_of_tensor, kept_in, versions
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Examined, Subject
from fsae.export.dictionary_files import load_autoencoder
from fsae.export.saelens import read_density
from fsae.matching import assignment, unit_rows
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import Job, JobState, read_sweep
from fsae.progress import Progress
from fsae.seeds import generator_for

log = logging.getLogger(__name__)

# The folder of matched pairs in the sweep's folder.
FOLDER = "stability"
# Overrides that repeat a job with other random numbers.
SEEDS = frozenset({"seed", "source.seed"})
_REMEDY = "name a finished sweep over seeds, as in python -m fsae.evaluate SWEEP 'eval=[stability]'"


class Decoder(NamedTuple):
    """The decoder of a dictionary.

    Attributes:
        rows: (d_sae, d_in).
        alive: the latents that fire; the decoder rows of others carry no information about the data.
    """

    rows: Float[Tensor, "d_sae d_in"]
    alive: Bool[Tensor, " d_sae"]


class Match(NamedTuple):
    """The latents of two decoders, matched one to one.

    Attributes:
        absolute: mean absolute cosine of the pairs.
        signed: the same with signs, and the matching of largest signed cosines.
        alike: (2, pairs) the latents of each decoder that are the same up to sign.
    """

    absolute: float
    signed: float
    alike: Int[Tensor, "2 pairs"]


# Matches the latents of the first decoder with those of the second one.
Matcher = Callable[[Decoder, Decoder], Match]


@dataclass(frozen=True, eq=False)
class Found:
    """The latents of one dictionary that dictionaries of other seeds have, too.

    Attributes:
        absolute: for each other dictionary, the mean absolute cosine of matched latents.
        signed: the same with signs, and the matching of largest signed cosines.
        found_by: (d_sae,) in how many dictionaries, its own included, each latent is found; 0 for a dead latent.
    """

    absolute: list[float]
    signed: list[float]
    found_by: Int[Tensor, " d_sae"]


@torch.no_grad()
def matched(first: Decoder, second: Decoder) -> Match:
    """Match the live latents of two decoders."""
    alive = [each.alive.nonzero().squeeze(1) for each in (first, second)]
    cosines = unit_rows(first.rows[first.alive].float()) @ unit_rows(second.rows[second.alive].float()).T
    signed = cosines[assignment(cosines)].mean().item()
    pairs = assignment(cosines.abs())
    alike = cosines.abs()[pairs]
    same = [own[place][alike > SAME] for own, place in zip(alive, pairs, strict=True)]
    return Match(alike.mean().item(), signed, torch.stack(same))


def matched_once(folder: Path, first: Decoder, second: Decoder) -> Match:
    """Match the live latents of two decoders, or read the match from this folder; the order does not matter."""
    digests = [digest_of_tensor(each.rows.float()) + digest_of_tensor(each.alive) for each in (first, second)]
    if turned := digests[0] > digests[1]:
        first, second = second, first

    def compute() -> dict[str, Tensor]:
        found = matched(first, second)
        cosines = torch.tensor([found.absolute, found.signed], dtype=torch.float64)
        return {"cosines": cosines, "alike": found.alike}

    kept = kept_in(folder, {"decoders": sorted(digests), "versions": versions()}, compute)
    absolute, signed = kept["cosines"].tolist()
    return Match(absolute, signed, kept["alike"].flip(0) if turned else kept["alike"])


def compare_seeds(
    own: Decoder,
    others: Sequence[Decoder],
    heartbeat: Callable[[], None] = lambda: None,
    match: Matcher = matched,
) -> Found:
    """Match the live latents of a dictionary with those of each other dictionary.

    Args:
        own: the dictionary's decoder.
        others: those of the other dictionaries.
        heartbeat: called after each other dictionary; may raise to stop.
        match: matches two of them.
    """
    found_by = own.alive.long()
    matches = list[Match]()
    for other in others:
        matches.append(match(own, other))
        heartbeat()
        found_by[matches[-1].alike[0]] += 1
    return Found([each.absolute for each in matches], [each.signed for each in matches], found_by)


@torch.no_grad()
def random_cosine(own: Bool[Tensor, " d_sae"], other: Bool[Tensor, " d_sae"], ends: Ends) -> float:
    """Return the mean absolute cosine of matched latents for random directions: the value of chance.

    Args:
        own, other: the live latents of the two dictionaries.
        ends: of both; a random row writes the same parts as the latent's own row.
    """
    generator = generator_for("stability", int(own.sum()), int(other.sum()), ends.target.width)
    masks = (ends.may_write(len(alive))[alive] for alive in (own, other))
    rows, columns = (unit_rows(torch.randn(mask.shape, generator=generator) * mask) for mask in masks)
    cosines = (rows @ columns.T).abs()
    return cosines[assignment(cosines)].mean().item()


@dataclass(frozen=True, kw_only=True)
class Stability(Evaluation, group="eval.stability"):
    """The agreement of a sweep's jobs that differ in their seed alone (PW-MCC, Song et al. 2025, arXiv 2505.20254).

    Decoder rows of two dictionaries are matched one to one (Hungarian), dead latents left out, and the cosines of the
    min(n, m) pairs are averaged. A job's numbers are means over the other seeds, so their mean over a sweep's seeds is
    the mean over all pairs. The reference matches and averages signed cosines; SAELens takes absolute ones.
    A latent is found by another seed if its partner's absolute cosine is above 0.7 (arXiv 2501.16615).
    """

    in_sweeps: ClassVar[bool] = False
    # Another seed may have finished since.
    repeatable: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied(
            "stability_mcc",
            Meaning("|cosine| of latents matched with other seeds' latents", better=Better.more),
            {"random": "random directions"},
        ),
        "stability_found_share": Meaning("share of live latents that every seed found", better=Better.more),
        "stability_mcc_signed": Meaning(
            "cosine of latents matched by signed cosines", better=Better.more, shown=Shown.files
        ),
        "stability_alone_share": Meaning(
            "share of live latents that no other seed found", better=Better.less, shown=Shown.files
        ),
        "stability_seeds": Meaning("dictionaries that were compared, with its own", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return each run's agreement with the finished jobs of its sweep that differ in their seed alone.

        A run without such jobs is left out.

        Raises:
            ValueError: no run has such jobs, or densities are missing.
        """
        # All of them, before any is matched.
        siblings, reasons = zip(*map(_siblings, subject.runs), strict=True)
        if not any(siblings):
            raise ValueError(f"eval.stability: {reasons[0]}; {_REMEDY}")
        for reason in filter(None, reasons):
            log.warning("stability is measured for the other runs alone: %s", reason)
        pairs = sum(len(run.autoencoders) * len(each) for run, each in zip(subject.runs, siblings, strict=True))
        progress = Progress("matching latents with those of other seeds", pairs, "pairs")

        def beat() -> None:
            progress.advance(1)
            subject.heartbeat()

        found = [_measured(run, each, beat) for run, each in zip(subject.runs, siblings, strict=True)]
        progress.close()
        return found


def _measured(run: Examined, siblings: Sequence[Path], heartbeat: Callable[[], None]) -> Measured:
    if not siblings:
        return Measured()
    assert run.folder is not None
    match = partial(matched_once, run.folder.parent / FOLDER)
    found, numbers = list[Found](), list[dict[str, float]]()
    members = len(run.autoencoders)
    for number, autoencoder in enumerate(run.autoencoders):
        alive = _alive(_exported(run.folder, run.member(number)))
        others = [_decoder(_exported(folder, run.member(number))) for folder in siblings]
        each = compare_seeds(Decoder(autoencoder.W_dec.detach().cpu(), alive), others, heartbeat, match)
        found.append(each)
        live = each.found_by[each.found_by > 0]
        numbers.append(
            {
                **mean_and_noise("stability_mcc", each.absolute),
                "stability_found_share": (live == 1 + len(others)).double().mean().item(),
                "stability_mcc_signed": sum(each.signed) / len(each.signed),
                "stability_mcc_random": random_cosine(alive, others[0].alive, autoencoder.ends),
                "stability_alone_share": (live == 1).double().mean().item(),
                "stability_seeds": 1.0 + len(others),
            }
        )
    counts = [torch.bincount(each.found_by, minlength=2 + len(siblings)).tolist() for each in found]
    return Measured(
        numbers,
        content={"latents_by_seeds": counts[0] if members == 1 else counts},
        files={"stability.json": {"found_by": [each.found_by.tolist() for each in found]}},
    )


def _siblings(run: Examined) -> tuple[list[Path], str]:
    """Return the folders of the finished jobs of the run's sweep that differ from it in their seed alone, or the reason
    why there are none."""
    folder = run.folder
    if folder is None or not (folder.parent / "sweep.json").exists():
        return [], f"it compares the seeds of a sweep, and {folder or 'this'} is no job of one"
    jobs = read_sweep(folder.parent).all_jobs()
    own = next(job for job in jobs if job.folder.resolve() == folder.resolve())
    others = [job for job in jobs if job is not own and _without_seeds(job) == _without_seeds(own)]
    finished = [job.folder for job in others if job.state() is JobState.finished]
    alone = f"of the sweep in {folder.parent}, no finished job differs from {folder.name} in its seed alone"
    return finished, "" if finished else alone


def _without_seeds(job: Job) -> list[str]:
    return sorted(each for each in job.overrides if each.partition("=")[0].lstrip("+") not in SEEDS)


def _exported(folder: Path, member: int | None) -> Path:
    exported = RunFolder(folder).sae
    return exported if member is None else exported / str(member)


def _decoder(exported: Path) -> Decoder:
    autoencoder: Autoencoder = load_autoencoder(exported)
    return Decoder(autoencoder.W_dec.detach(), _alive(exported))


def _alive(exported: Path) -> Bool[Tensor, " d_sae"]:
    density = read_density(exported)
    if density is None:
        raise ValueError(
            f"{exported} has no densities, so dead latents are unknown; evaluate the run by vectors first, as in "
            f"python -m fsae.evaluate {exported.parent} 'eval=[vectors]'"
        )
    return density > 0
