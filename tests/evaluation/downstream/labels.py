"""Dictionaries of known use for evaluations that probe texts, whose last character decides their label."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.language_models.sites import Site
from tests.evaluation.downstream.texts import CharacterModel, Text, subject_on

D_IN = 32
# Characters of the two classes.
CLASSES = ("abcdefgh", "stuvwxyz")


class OwnCharacter(CharacterModel):
    """A character has a vector of its own in half the dimensions, and nothing of those before it."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(0))

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.tokens_read += tokens.numel()
        return dict.fromkeys(sites, self.table[tokens])


def some_text(texts_kept: Any = None) -> Text:
    text = Text(texts_kept)
    text.model = OwnCharacter()
    return text


def known_latents() -> Autoencoder:
    """Latents of which the first is on for characters of the second class, and the others for random directions."""
    table = OwnCharacter().table
    autoencoder = StandardSettings(d_sae=16).build(D_IN, torch.Generator().manual_seed(1)).eval()
    last, first = (table[list(name.encode())] for name in CLASSES[::-1])
    # The direction on which all characters of one class are at 1, and those of the other at -1.
    targets = torch.cat([torch.ones(len(last)), -torch.ones(len(first))])
    direction = torch.linalg.pinv(torch.cat([last, first])) @ targets
    with torch.no_grad():
        autoencoder.b_dec.zero_()
        autoencoder.W_enc[:, 0] = direction
        autoencoder.get_parameter("b_enc").zero_()
    return autoencoder


def random_latents() -> Autoencoder:
    return StandardSettings(d_sae=16).build(D_IN, torch.Generator().manual_seed(2)).eval()


def measured(evaluation: Evaluation, *autoencoders: Autoencoder, text: Text | None = None) -> list[Measured]:
    return evaluation.measure(subject_on(some_text() if text is None else text, autoencoders))
