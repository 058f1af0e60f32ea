"""ReFT-r1: a direction that detects a concept and steers towards it, trained through the language model."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.seeds import generator_for
from fsae.sources.source import HeldOutText

# AxBench's settings: texts per batch, learning rate, latents of a text whose mean is added, weight of the L1 norm.
_BATCH, _RATE, _TOP, _L1 = 6, 0.01, 8, 0.005
# The target of a position that does not count.
_IGNORED = -100


def reft_direction(
    text: HeldOutText,
    texts: Sequence[str],
    tokens: int,
    epochs: int,
    seed: int,
    heartbeat: Callable[[], None] = lambda: None,
) -> Float[Tensor, " d_in"]:
    """Return the unit vector w of a rank-1 ReFT (Wu et al., arXiv 2501.17148), trained on a concept's texts.

    The latent of a token is ReLU(h . w). At every token except the first, the mean of a text's eight greatest latents
    times w is added to h. The loss is the cross-entropy of the text, plus the mean sum of the other latents times a
    weight that rises from 0 to 0.005. AdamW's learning rate falls from 0.01 to 0, and w keeps length 1.

    Args:
        text: the language model and the site.
        texts: of the concept.
        tokens: of a text that are read, at most.
        epochs: passes over the texts.
        seed: of the start and of the order.
        heartbeat: called after each batch; may raise to stop.
    """
    model = text.model
    bos = model.bos_token_id
    rows = [ids[:tokens] for ids in model.tokenise(texts)]
    rows = [[bos, *ids] if text.prepends_bos and bos is not None else ids for ids in rows]
    rows = [row for row in rows if len(row) > 1]
    draw = generator_for(seed, "reft")
    start = torch.randn(model.width(text.site), generator=draw)
    w = (start / start.norm()).to(model.device).requires_grad_()
    optimiser = torch.optim.AdamW([w], lr=_RATE)
    steps = epochs * len(range(0, len(rows), _BATCH))
    done = 0
    with model.in_float32():
        for _ in range(epochs):
            order = torch.randperm(len(rows), generator=draw).tolist()
            for begin in range(0, len(order), _BATCH):
                batch = [rows[number] for number in order[begin : begin + _BATCH]]
                for group in optimiser.param_groups:
                    group["lr"] = _RATE * (1 - done / steps)
                (gradient,) = torch.autograd.grad(_loss(text, batch, w, _L1 * done / steps), [w])
                # Only the direction is trained.
                w.grad = gradient - (gradient @ w.detach()) * w.detach()
                optimiser.step()
                with torch.no_grad():
                    w /= w.norm()
                done += 1
                heartbeat()
    return w.detach().float().cpu()


def _loss(text: HeldOutText, rows: Sequence[Sequence[int]], w: Float[Tensor, " d_in"], weight: float) -> Tensor:
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[text.model.separator_id] * (longest - len(row))] for row in rows])
    counted = torch.tensor([[0 < place < len(row) for place in range(longest)] for row in rows]).to(w.device)
    rest: list[Tensor] = []

    def edited(x: Tensor) -> Tensor:
        kept = counted
        if text.norm_limit is not None:
            kept = counted & (x.norm(dim=2) <= text.norm_limit)
        latents = torch.relu(x @ w) * kept
        greatest = latents.topk(min(_TOP, longest), dim=1).values
        rest.append((latents.sum(1) - greatest.sum(1)).mean())
        return x + kept[:, :, None] * greatest.mean(1)[:, None, None] * w

    logits = text.model.differentiable_logits(tokens, (text.site, edited))
    targets = torch.where(counted, tokens.to(w.device), _IGNORED)[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED
    )
    return loss + weight * rest[0]
