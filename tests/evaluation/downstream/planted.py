"""A world of characters whose kind is a direction, and a dictionary that has one latent per kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.language_models.sites import Site
from tests.evaluation.downstream.texts import CharacterModel, Text, subject_on

D_IN = 64
# Characters of each kind, and those of none.
KINDS = ("abc", "def", "ghi", "jkl", "mno")
FILLER = "uvwxyz"


class KindsOfCharacters(CharacterModel):
    """A character of kind i is at 8 on axis i; the further axes are noise."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(0))
        # Without noise a probe would be right after its first epoch, with weights that are still random.
        self.table[:, : len(KINDS)] = 0
        for axis, kind in enumerate(KINDS):
            self.table[list(kind.encode()), axis] = 8

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.tokens_read += tokens.numel()
        return dict.fromkeys(sites, self.table[tokens])


def text_of(kinds: Sequence[int], generator: np.random.Generator) -> str:
    """Return a text with a character of each kind, among others."""
    letters = [*generator.choice(list(FILLER), size=6), *(generator.choice(list(KINDS[kind])) for kind in kinds)]
    return "".join(generator.permutation(letters))


def planted() -> Autoencoder:
    """A dictionary with a latent for each kind, and latents of other axes."""
    autoencoder = StandardSettings(d_sae=D_IN).build(D_IN, torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        autoencoder.b_dec.zero_()
        autoencoder.W_enc.copy_(torch.eye(D_IN))
        autoencoder.W_dec.copy_(torch.eye(D_IN))
        autoencoder.get_parameter("b_enc").zero_()
    return autoencoder


def random() -> Autoencoder:
    return StandardSettings(d_sae=D_IN).build(D_IN, torch.Generator().manual_seed(2)).eval()


def measured(evaluation: Evaluation, *autoencoders: Autoencoder, kept: Any = None) -> tuple[list[Measured], int]:
    """Return the findings, and how many tokens the language model read."""
    text = Text(kept)
    text.model = KindsOfCharacters()
    return evaluation.measure(subject_on(text, autoencoders)), text.model.tokens_read
