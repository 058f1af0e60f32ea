"""`amortisation`: the loss of an encoder that computes codes in one product, next to codes that are searched for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.parts import equal_parts, left_to_codes
from fsae.evaluation.subject import Subject
from fsae.matching import assignment, unit_rows
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, COUNT_OR_NONE
from fsae.seeds import generator_for
from fsae.sources.source import Source

# Dense products with the dictionary in one step of the search.
PRODUCTS = 3
# Steps from which the codes of a sample of sparse coding are found.
_CODING_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Amortisation(Evaluation, group="eval.amortisation"):
    """The amortisation gap (O'Neill et al. 2025, arXiv 2411.13117): the error that an encoder adds to its dictionary's.

    Codes are optimised on the frozen decoder, starting from the encoder's codes, with at most as many active latents in
    each sample as the encoder has there. So errors are compared at the same l0. The search is iterative hard
    thresholding with normalised steps (Blumensath and Davies 2010): a gradient step on the squared error, of which the
    largest codes are kept; a step that does not lower a sample's error is not taken. With the encoder's latents kept
    and only values optimised, the gap divides into wrong values and wrong latents. If features are known, codes are
    also compared with the true coefficients: the mean absolute correlation of one-to-one matched latents and features.

    Sparse coding has no encoder at all: dictionary and codes are learned by turns, from random directions, and its
    codes on the held-out samples are searched for in the same way, with the l0 of the autoencoder. If latents write
    some parts only, so do the random directions and the rows of sparse coding.

    Attributes:
        samples: held-out samples.
        batch_size: samples per batch; several batches give the noise.
        steps: of the search. Each multiplies three times by the dictionary.
        coding_rounds: batches of training vectors on which sparse coding learns; 0 leaves it out.
        seed: of the control's directions and of sparse coding's first dictionary.
    """

    samples: int = field(default=1024, metadata=COUNT)
    batch_size: int = field(default=256, metadata=COUNT)
    steps: int = field(default=30, metadata=COUNT)
    coding_rounds: int = field(default=0, metadata=COUNT_OR_NONE)
    seed: int = field(default=0, metadata=COUNT_OR_NONE)

    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("amortisation_gap", Meaning("fvu that the encoder adds to its decoder's", better=Better.less)),
        **accompanied(
            "amortisation_fvu",
            Meaning("fvu of codes optimised on the decoder", better=Better.less),
            {"random": "random directions"},
            noise=False,
        ),
        "amortisation_values": Meaning("the gap's part that is wrong values", better=Better.less, shown=Shown.files),
        "amortisation_mcc": Meaning("correlation of optimised codes and true ones", better=Better.more),
        "amortisation_mcc_gap": Meaning("amortisation_mcc minus that of the encoder's codes"),
        "amortisation_coding": Meaning("fvu of sparse coding", better=Better.less, shown=Shown.files),
        "amortisation_coding_mcc": Meaning(
            "correlation of sparse coding's codes and true ones", better=Better.more, shown=Shown.files
        ),
    }

    @property
    def held_out(self) -> int:
        return self.samples

    @torch.no_grad()
    def measure(self, subject: Subject) -> list[Measured]:
        """Return the gap of every autoencoder, and its curves against compute."""
        batches = list(subject.held_out(self.samples, self.batch_size, "reading"))
        true = subject.source.truth
        known = None if true is None else torch.cat([codes.dense() for codes in true.held_out_codes(self.samples)])
        # Three searches in each batch, and if there is sparse coding a fourth one after its rounds.
        of_one = 3 * len(batches) * self.steps
        if self.coding_rounds > 0:
            of_one += self.coding_rounds * _CODING_STEPS + len(batches) * self.steps
        progress = Progress("searching for codes", len(subject.autoencoders) * of_one, "steps")

        def beat() -> None:
            subject.heartbeat()
            progress.advance(1)

        found = []
        for autoencoder in subject.autoencoders:
            pairs = [(each.inputs.to(autoencoder.W_dec), each.targets.to(autoencoder.W_dec)) for each in batches]
            found.append(self._measured(autoencoder, pairs, known, subject.source, beat))
        progress.close()
        return [
            Measured(
                [numbers for numbers, _ in own],
                content={"amortisation_curves": [curve for _, curve in own] if len(own) > 1 else own[0][1]},
            )
            for own in subject.by_run(found)
        ]

    def _measured(
        self,
        autoencoder: Autoencoder,
        pairs: Sequence[tuple[Tensor, Tensor]],
        known: Tensor | None,
        source: Source,
        heartbeat: Callable[[], None],
    ) -> tuple[dict[str, float], dict[str, Any]]:
        targets = torch.cat([wanted for _, wanted in pairs])
        unit = equal_parts(autoencoder.ends.target, targets)
        spread = ((targets - targets.mean(0)) * unit).square().sum(1).mean()
        autoencoder.check_decodes_alone()
        W_dec, b_dec = autoencoder.W_dec.detach() * unit, autoencoder.b_dec.detach() * unit
        encoded = [autoencoder(x, True).codes.dense() for x, _ in pairs]
        active = [(codes != 0).sum(1) for codes in encoded]
        signed = any(bool((codes < 0).any()) for codes in encoded)
        wanted = [left_to_codes(autoencoder, *pair) * unit - b_dec for pair in pairs]

        def searched(W: Tensor, starts: Sequence[Tensor], keep: bool = False) -> tuple[list[Tensor], Tensor]:
            """Return the codes, and the error of each sample after each step, as a share of the spread."""
            codes, errors = [], []
            for x, start, k in zip(wanted, starts, active, strict=True):
                each, error = search(x, W, start, k, self.steps, signed, keep, heartbeat)
                codes.append(each)
                errors.append(error / spread)
            return codes, torch.cat(errors, dim=1)

        optimised, errors = searched(W_dec, encoded)
        _, values = searched(W_dec, encoded, keep=True)
        mask = autoencoder.ends.may_write(autoencoder.d_sae).to(W_dec)
        empty = [torch.zeros_like(codes) for codes in encoded]
        _, random = searched(_random_rows(mask, generator_for(self.seed, "random")), empty)
        gaps = torch.stack([each.mean() for each in (errors[0] - errors[-1]).split(self.batch_size)])
        numbers = {
            "amortisation_gap": (errors[0] - errors[-1]).mean().item(),
            "amortisation_gap_noise": (gaps.std() / len(gaps) ** 0.5).item() if len(gaps) > 1 else float("nan"),
            "amortisation_fvu": errors[-1].mean().item(),
            "amortisation_fvu_random": random[-1].mean().item(),
            "amortisation_values": (values[0] - values[-1]).mean().item(),
        }
        # The encoder is one product with a matrix of the dictionary's size.
        curve: dict[str, Any] = {
            "flops_of_encoder": 2 * W_dec.numel(),
            "flops_of_step": 2 * PRODUCTS * W_dec.numel(),
            "fvu_after_steps": errors.mean(1).tolist(),
            "fvu_of_values_after_steps": values.mean(1).tolist(),
            "fvu_of_random_after_steps": random.mean(1).tolist(),
        }
        if known is not None:
            mcc, of_encoder = (code_correlation(torch.cat(codes), known) for codes in (optimised, encoded))
            numbers |= {"amortisation_mcc": mcc, "amortisation_mcc_gap": mcc - of_encoder}
        if self.coding_rounds > 0:
            k = max(1, round(torch.cat(active).double().mean().item()))
            first = source.first_vectors().to(W_dec), source.first_targets().to(W_dec)
            vectors = left_to_codes(autoencoder, *first) * unit - b_dec
            coded = self.coded(vectors, mask, k, heartbeat)
            codes, coding = searched(coded, empty)
            numbers["amortisation_coding"] = coding[-1].mean().item()
            # Each round searches for codes in a batch of so many samples, and then moves the dictionary.
            curve["flops_of_coding"] = (
                2 * PRODUCTS * W_dec.numel() * self.batch_size * self.coding_rounds * (_CODING_STEPS + 1)
            )
            if known is not None:
                numbers["amortisation_coding_mcc"] = code_correlation(torch.cat(codes), known)
        return numbers, curve

    def coded(
        self,
        vectors: Float[Tensor, "vectors d"],
        mask: Float[Tensor, "d_sae d"],
        k: int,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "d_sae d"]:
        """Learn a dictionary of unit rows by sparse coding (Olshausen and Field 1996).

        Args:
            vectors: the samples, minus the bias.
            mask: 1 where rows may have entries other than zero, and 0 elsewhere.
            k: the most latents that may be on in each sample.
            heartbeat: called before each step of a search; may raise to stop.
        """
        generator = generator_for(self.seed, "coding")
        W = _random_rows(mask, generator)
        counts = torch.full((self.batch_size,), k, device=W.device)
        for _ in range(self.coding_rounds):
            x = vectors[torch.randint(len(vectors), (self.batch_size,), generator=generator).to(vectors.device)]
            codes, _ = search(x, W, torch.zeros(len(x), len(W)).to(W), counts, _CODING_STEPS, False, False, heartbeat)
            gradient = codes.T @ (x - codes @ W) * mask
            # The step of least error along the gradient.
            moved = codes @ gradient
            W = unit_rows(W + (gradient.square().sum() / moved.square().sum().clamp_min(1e-30)) * gradient)
        return W


def _random_rows(mask: Float[Tensor, "d_sae d"], generator: torch.Generator) -> Float[Tensor, "d_sae d"]:
    """Return random directions within the mask."""
    return unit_rows(torch.randn(mask.shape, generator=generator).to(mask) * mask)


@torch.no_grad()
def search(
    x: Float[Tensor, "batch d"],
    W: Float[Tensor, "d_sae d"],
    start: Float[Tensor, "batch d_sae"],
    active: Int[Tensor, " batch"],
    steps: int,
    signed: bool = False,
    keep: bool = False,
    heartbeat: Callable[[], None] = lambda: None,
) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "steps1 batch"]]:
    """Search for codes of small squared error |x - codes W|^2; errors never rise.

    Args:
        x: the samples, minus the decoder's bias.
        W: the decoder.
        start: the first codes.
        active: the most latents that may be on in each sample.
        steps: of the search.
        signed: whether codes may be negative.
        keep: whether the latents that are on at the start stay, so that only values change.
        heartbeat: called before each step; may raise to stop.

    Returns:
        The codes, and the squared error of each sample before the first and after each step.
    """
    codes, on = start.clone(), start != 0
    rest = x - codes @ W
    errors = [rest.square().sum(1)]
    pace = torch.ones_like(errors[0])
    for _ in range(steps):
        heartbeat()
        gradient = rest @ W.T
        # Along the latents that are on, or would be the first ones, the error is least after a step of this length.
        support = on if keep else codes != 0
        empty = ~support.any(1, keepdim=True)
        if not keep and empty.any():
            support = support | (empty & _largest(gradient if not signed else gradient.abs(), active))
        along = gradient * support
        length = along.square().sum(1) / (along @ W).square().sum(1).clamp_min(1e-30)
        moved = codes + (pace * length)[:, None] * (along if keep else gradient)
        if not signed:
            moved = moved.clamp_min(0)
        if not keep:
            moved = moved * _largest(moved.abs(), active)
        left = x - moved @ W
        error = left.square().sum(1)
        lower = error < errors[-1]
        codes, rest = (torch.where(lower[:, None], new, old) for new, old in ((moved, codes), (left, rest)))
        errors.append(torch.where(lower, error, errors[-1]))
        pace = torch.where(lower, (2 * pace).clamp_max(1), pace / 2)
    return codes, torch.stack(errors)


def _largest(scores: Float[Tensor, "batch d_sae"], counts: Int[Tensor, " batch"]) -> Tensor:
    """Return where the largest scores of each row are, as many as `counts` says; ties may be more."""
    most = max(1, int(counts.max()))
    least = scores.topk(most, dim=1).values.gather(1, (counts - 1).clamp_min(0)[:, None])
    return (scores >= least) & (counts > 0)[:, None]


@torch.no_grad()
def code_correlation(codes: Float[Tensor, "samples d_sae"], true: Float[Tensor, "samples features"]) -> float:
    """Return the mean absolute correlation of codes and true coefficients, matched one to one (MCC of codes).

    Latents and features that are never on, and so have no correlation, are left out.
    """
    codes, true = (
        torch.nn.functional.normalize(each - each.mean(0), dim=0)
        for each in (codes[:, (codes != 0).any(0)].float(), true[:, (true != 0).any(0)].to(codes.device).float())
    )
    alike = (codes.T @ true).abs()
    return alike[assignment(alike)].mean().item()
