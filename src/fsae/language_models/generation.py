"""Generation: text that a language model continues, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.transformer_lens import Replacement, TransformerLensModel
from fsae.ranges import COUNT, SEED, Ranged, between
from fsae.seeds import generator_for


@dataclass(frozen=True, kw_only=True)
class Sampling(Ranged, group="generate"):
    """Settings of generation.

    Attributes:
        tokens: the most tokens that are generated; fewer if the model ends its text.
        temperature: divides the logits; 1 for the model's own distribution, 0 for the likeliest token.
        seed: of the draws. Row i of a call draws from (seed, i).
    """

    tokens: int = field(default=50, metadata=COUNT)
    temperature: float = field(default=1.0, metadata=between(least=0, most=100))
    seed: int = field(default=0, metadata=SEED)


def generate(
    model: TransformerLensModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    replacements: Callable[[ForwardPass], Sequence[Replacement]] = lambda forward_pass: (),
    cached: bool = True,
) -> list[list[int]]:
    """Continue prompts, and return the generated ids of each, without the id that ends a text.

    Args:
        model: the language model.
        prompts: token ids, at least one each.
        sampling: how many tokens, and how they are drawn.
        replacements: what replaces activations in a forward pass.
        cached: whether keys and values of earlier positions are kept; without them each step reads the whole row.

    Raises:
        ValueError: a prompt has no token, or is too long for the model.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} has no token; give it text, or a BOS with prepend_bos=True")
        if len(prompt) + sampling.tokens > model.context_limit:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; with {sampling.tokens} generated ones that is more than "
                f"the {model.context_limit} that model {model.name} takes; shorten it, or generate fewer"
            )
    generators = [generator_for(sampling.seed, number) for number in range(len(prompts))]
    alone = [[number] for number in range(len(prompts))]
    batches = [list(range(len(prompts)))] if prompts and model.accepts_padding else alone
    generated: list[list[int]] = []
    for numbers in batches:
        forward_pass = _padded([prompts[number] for number in numbers], model.device)
        drawn: list[list[int]] = []
        ended, cache = torch.zeros(len(numbers), dtype=torch.bool), None
        while len(drawn) < sampling.tokens and not ended.all():
            logits, cache = model.next_logits(forward_pass, cache, *replacements(forward_pass))
            cache = cache if cached else None
            rows = zip(logits.cpu(), numbers, strict=True)
            tokens = torch.cat([_drawn(row, sampling.temperature, generators[number]) for row, number in rows])
            ended |= torch.isin(tokens, torch.tensor(sorted(model.end_ids)))
            drawn.append(tokens.tolist())
            forward_pass = forward_pass.followed_by(tokens.to(model.device), cached=cache is not None)
        generated += [_before_end(list(row), model.end_ids) for row in zip(*drawn, strict=True)]
    return generated


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> ForwardPass:
    """Return the pass over prompts whose ends are aligned."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    real = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return ForwardPass(tokens, real, real.clone())


def _drawn(logits: Float[Tensor, " d_vocab"], temperature: float, generator: torch.Generator) -> Int[Tensor, " one"]:
    if temperature == 0:
        return logits.argmax()[None]
    return (logits.float() / temperature).softmax(0).multinomial(1, generator=generator)


def _before_end(row: list[int], end_ids: frozenset[int]) -> list[int]:
    ends = [place for place, token in enumerate(row) if token in end_ids]
    return row[: ends[0]] if ends else row
