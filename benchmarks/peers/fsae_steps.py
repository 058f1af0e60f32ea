"""Training steps of fsae: a `GradientLearner` under the rules of a peer, and the common weights."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.job import Job
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopKSettings
from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.jumprelu import JumpReLUSettings
from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.pursuit import MatchingPursuitSettings
from fsae.autoencoders.settings import DecoderNorm, SparseAutoencoderSettings
from fsae.autoencoders.standard import StandardSettings
from fsae.autoencoders.topk import TopKSettings
from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.matryoshka import Matryoshka, Reduction
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, AnnealedLp, StepL0, TargetL0
from fsae.losses.term import LossTerm
from fsae.memory import freed_memory_kept
from fsae.training.gradient_learner import GradientLearner
from fsae.training.settings import AdamSettings, Precision

DISTRIBUTION = "fsae"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A peer's way of training, as far as fsae's settings can express it."""

    decoder_norm: DecoderNorm = DecoderNorm.unit
    clip_norm: float | None = None
    beta1: float = 0.9
    apply_b_dec_to_input: bool = True


def rules_of(peer: str, architecture: str) -> Rules:
    """Return the rules of a peer for an architecture."""
    if peer == "sae_lens":
        # Pursuit keeps unit rows.
        norm = DecoderNorm.unit if architecture == "matching_pursuit" else DecoderNorm.free
        return Rules(decoder_norm=norm, clip_norm=1.0)
    if peer == "sparsify":
        return Rules(decoder_norm=DecoderNorm.unit if architecture == "topk" else DecoderNorm.free)
    return {
        "standard": Rules(),
        "gated": Rules(beta1=0.0),
        "jumprelu": Rules(beta1=0.0, clip_norm=1.0, apply_b_dec_to_input=False),
        "topk": Rules(clip_norm=1.0),
        "batch_topk": Rules(clip_norm=1.0),
        "matryoshka": Rules(clip_norm=1.0),
        "p_anneal": Rules(),
    }[architecture]


def settings_of(job: Job) -> tuple[SparseAutoencoderSettings, dict[str, LossTerm]]:
    """Return the autoencoder's settings and its objective."""
    rules = rules_of(job.rules, job.architecture)
    common = {
        "d_sae": job.d_sae,
        "decoder_norm": rules.decoder_norm,
        "apply_b_dec_to_input": rules.apply_b_dec_to_input,
    }
    terms: dict[str, LossTerm] = {"reconstruction": SquaredError()}
    match job.architecture:
        case "standard":
            return StandardSettings(**common, init_density=job.density), terms | {"sparsity": L1(weight=job.sparsity)}
        case "gated":
            gate = GateReconstruction(detach_decoder=job.rules != "sae_lens")
            terms |= {"sparsity": L1(weight=job.sparsity), "auxiliary": gate}
            return GatedSettings(**common, init_density=job.density), terms
        case "jumprelu":
            target = job.rules == "dictionary_learning"
            sparsity = TargetL0(weight=job.sparsity, target=job.k) if target else StepL0(weight=job.sparsity)
            settings = JumpReLUSettings(**common, init_density=job.density, bandwidth=job.bandwidth)
            return settings, terms | {"sparsity": sparsity}
        case "topk" | "transcoder" | "skip_transcoder":
            return TopKSettings(**common, k=job.k), terms | {"auxiliary": AuxK()}
        case "batch_topk":
            return BatchTopKSettings(**common, k=job.k), terms | {"auxiliary": AuxK()}
        case "matryoshka":
            inner: list[float] = list(job.widths[:-1])
            levels = Matryoshka(widths=inner)
            if job.rules == "dictionary_learning":
                weights = [1 / len(job.widths)] * len(job.widths)
                levels = Matryoshka(widths=inner, reduction=Reduction.mean, level_weights=weights)
            return BatchTopKSettings(**common, k=job.k), {"reconstruction": levels, "auxiliary": AuxK()}
        case "p_anneal":
            sparsity = AnnealedLp(weight=job.sparsity, begin=0.0, end=0.2)
            return StandardSettings(**common, init_density=job.density), terms | {"sparsity": sparsity}
        case "matching_pursuit":
            return MatchingPursuitSettings(**common, k=job.k), terms
        case _:
            raise ValueError(f"{job.architecture} is none of the architectures that are compared")


def ends_of(job: Job) -> Ends:
    """Return the layout of what is trained."""
    if not job.transcodes:
        return Ends.of(job.d_in)
    read, written = (Layout.of(job.d_in, name) for name in ("mlp_in", "mlp_out"))
    return Ends(input=read, target=written, skip=job.architecture == "skip_transcoder")


def targets_of(x: Tensor) -> Tensor:
    """Return what a transcoder should make of vectors: the outputs of a random layer."""
    weights = torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(2))
    return torch.relu(x @ weights.to(x.device) / x.shape[1] ** 0.5)


def write_weights(job: Job, vectors: Tensor) -> None:
    """Write fresh weights to the file that the job reads."""
    settings, _ = settings_of(job)
    autoencoder = settings.build(ends_of(job), torch.Generator().manual_seed(0))
    targets = (lambda: targets_of(vectors)) if job.transcodes else None
    autoencoder.initialise(lambda: vectors, scale=1.0, targets=targets)
    save_file({name: value.contiguous() for name, value in autoencoder.state_dict().items()}, Path(job.weights))


class Training:
    """Steps of `GradientLearner`."""

    def __init__(self, job: Job, weights: dict[str, Tensor]):
        # Held for the whole process, which only trains.
        self._memory = ExitStack()
        self._memory.enter_context(freed_memory_kept())
        settings, terms = settings_of(job)
        autoencoder = settings.build(ends_of(job), torch.Generator().manual_seed(0)).to(job.device, job.dtype)
        autoencoder.load_state_dict(weights)
        self.autoencoder: SparseAutoencoder = autoencoder
        rules = rules_of(job.rules, job.architecture)
        trainer = AdamSettings(
            samples=10**12,
            batch_size=job.batch,
            lr=job.lr,
            beta1=rules.beta1,
            warm_up=0.0,
            decay=0.0,
            clip_norm=rules.clip_norm,
            precision=Precision.bf16 if job.mode == "bf16" else Precision.fp32,
            dead_after=job.dead_after * job.batch,
        )
        self.member = GradientLearner(autoencoder, Objective(terms), trainer, scale=1.0, seed=0)

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        self.member.step(x, number - 1, None if self.autoencoder.ends.same else y)
        # As the training loop does, to update the list of dead latents and the choice of products.
        if self.member.settings.logs_after(number - 1):
            self.member.read_interval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        record = self.autoencoder(x, self.member.sparse)
        return record.reconstruction, (record.codes.values != 0).sum()
