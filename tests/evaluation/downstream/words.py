"""A language model for evaluations whose tokens are words, some of which belong to concepts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import Replacement

# Each concept has four words of its own and a dimension of the activations; other words have none.
CONCEPTS = ("birds", "ships")
OWN = {"birds": ["owl", "crow", "swan", "finch"], "ships": ["brig", "yacht", "ferry", "canoe"]}
OTHERS = [f"word{i}" for i in range(24)]
WORDS = ["<s>", "<end>", *OWN["birds"], *OWN["ships"], *OTHERS]
D_IN = 6


class WordModel:
    """Activations that depend on their own token alone; a concept's dimension raises the logits of its words."""

    name = "words"
    context_limit = 64
    bos_token_id = 0
    separator_id = 1
    special_ids = frozenset({0, 1})
    end_ids = frozenset({1})
    accepts_padding = True
    device = torch.device("cpu")

    def __init__(self):
        self.table = 0.2 * torch.randn(len(WORDS), D_IN, generator=torch.Generator().manual_seed(0))
        self.table[:, :2] = 0
        self.unembedding = torch.zeros(D_IN, len(WORDS))
        for dimension, concept in enumerate(CONCEPTS):
            for word in OWN[concept]:
                self.table[WORDS.index(word), dimension] = 2.0
                self.unembedding[dimension, WORDS.index(word)] = 1.0

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[WORDS.index(word) for word in text.split()] for text in texts]

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return dict.fromkeys(sites, self.table[tokens])

    def check_splice(self, site: Site) -> None:
        pass

    def text(self, ids: Sequence[int]) -> str:
        return "".join(f" {WORDS[number]}" for number in ids)

    def logits(self, tokens: Tensor, *replacements: Replacement) -> Tensor:
        x = self.table[tokens]
        for _, function in replacements:
            replaced = function(x)
            x = x if replaced is None else replaced
        logits = x @ self.unembedding
        logits[..., :2] = -30.0
        return logits

    differentiable_logits = logits

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        yield

    def width(self, site: Site) -> int:
        return D_IN

    def next_logits(self, forward_pass: ForwardPass, cache: Any, *replacements: Replacement) -> tuple[Tensor, Any]:
        return self.logits(forward_pass.tokens, *replacements)[:, -1], None
