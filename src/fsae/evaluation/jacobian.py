"""`jacobian`: how many pairs of latents an MLP's computation needs, between the two autoencoders of a pair."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.couplings.jacobian import active_latents, jacobian_blocks
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.language_models.mlp import MLP
from fsae.outputs.results import Better, Meaning, Shown
from fsae.ranges import COUNT

# The thresholds of the published counts, by the names of the numbers.
THRESHOLDS = {"005": 0.005, "01": 0.01, "015": 0.015, "02": 0.02}
# The entries of samples' operands, (samples, k, d_mlp), that are held at a time.
ENTRIES_AT_ONCE = 2**25


@torch.no_grad()
def evaluate_jacobian(
    first: Autoencoder,
    second: Autoencoder,
    mlp: MLP,
    x: Float[Tensor, "samples d_in"],
    y: Float[Tensor, "samples d_out"],
    entries_at_once: int = ENTRIES_AT_ONCE,
) -> dict[str, float]:
    """Return how sparse the Jacobian between the active latents of two autoencoders is, over samples.

    An element is the change of a code per change of another one, each relative to the mean norm of the vectors at its
    site, so that no number depends on the units of the language model.

    Args:
        first, second: of the MLP's inputs and of its outputs, in raw units.
        mlp: the MLP.
        x, y: its raw inputs, and its raw outputs.
        entries_at_once: see ENTRIES_AT_ONCE.
    """
    unit = x.norm(dim=1).mean() / y.norm(dim=1).mean()
    tables = [first.W_dec @ matrix for matrix, _ in mlp.into_hidden(x[:1])]
    out = second.W_enc.T @ mlp.out.W.T
    (read, reads), (written, writes) = (
        active_latents(autoencoder.encode(vectors, sparse=True).codes)
        for autoencoder, vectors in ((first, x), (second, y))
    )
    total, counts = 0.0, dict.fromkeys(THRESHOLDS, 0)
    for some in torch.arange(len(x)).split(max(1, entries_at_once // (read.shape[1] * out.shape[1]))):
        part = slice(int(some[0]), int(some[-1]) + 1)
        into = list(zip(tables, (factors for _, factors in mlp.into_hidden(x[part])), strict=True))
        blocks = jacobian_blocks(into, out, read[part], written[part])
        sizes = unit * blocks.abs() * (reads[part].unsqueeze(2) & writes[part].unsqueeze(1))
        total += sizes.sum().item()
        for name, threshold in THRESHOLDS.items():
            counts[name] += int((sizes > threshold).sum())
    block = read.shape[1] * written.shape[1]
    return {
        "jacobian_mean": total / (len(x) * block),
        **{f"jacobian_above_{name}": count / len(x) for name, count in counts.items()},
        "jacobian_share_01": counts["01"] / (len(x) * block),
    }


@dataclass(frozen=True, kw_only=True)
class Jacobian(Evaluation, group="eval.jacobian"):
    """The sparsity of the Jacobian between the two autoencoders of a pair (`layout=jacobian_pair`).

    Attributes:
        samples: held-out vectors.
    """

    samples: int = field(default=2048, metadata=COUNT)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "pair"})
    meanings: ClassVar[dict[str, Meaning]] = {
        "jacobian_above_01": Meaning(
            "elements of a sample's Jacobian above 0.01, of k x k", better=Better.less, shown=Shown.first
        ),
        "jacobian_share_01": Meaning("share of the k x k elements above 0.01", better=Better.less),
        "jacobian_mean": Meaning(
            "mean size of the elements, relative to the mean norms at both sites",
            better=Better.less,
            shown=Shown.files,
        ),
        **{
            f"jacobian_above_{name}": Meaning(f"elements above {threshold}", better=Better.less, shown=Shown.files)
            for name, threshold in THRESHOLDS.items()
            if name != "01"
        },
    }

    @property
    def held_out(self) -> int:
        return self.samples

    def measure(self, subject: Subject) -> list[Measured]:
        """Return the numbers of each pair.

        Raises:
            ValueError: the Jacobian of the language model's MLP is not known.
        """
        text = subject.source.text
        assert text is not None
        mlp = text.model.mlp(text.site.layer).to(subject.source.device)
        batches = list(subject.held_out(self.samples, self.samples, "measuring the Jacobian"))
        x, y = (torch.cat(each).float() for each in zip(*((one.inputs, one.targets) for one in batches), strict=True))
        pairs = [(run.autoencoders[0], run.autoencoders[1]) for run in subject.runs]
        return [Measured(shared=evaluate_jacobian(first, second, mlp, x, y)) for first, second in pairs]
