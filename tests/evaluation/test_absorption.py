import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation import absorption
from fsae.evaluation.absorption import Absorption
from fsae.evaluation.downstream.letter_probes import letter_probes
from fsae.language_models.sites import Site
from tests.evaluation.downstream.texts import Text, subject_on

# Words of five letters, 60 words each; the vector of a word is its letter's direction and one of its own.
LETTERS, EACH = 5, 60
WORDS = [f" {chr(97 + letter)}{chr(97 + i // 26)}{chr(97 + i % 26)}" for letter in range(LETTERS) for i in range(EACH)]
OWN = 40
D_IN = LETTERS + OWN
FIRST = 2
SETTINGS = Absorption(words=1000, examples=2, splits=2, seed=3)


class SpellingModel:
    """A model whose tokens are words, and whose activations depend on their own token alone."""

    name = "spelling"
    context_limit = 64
    bos_token_id = 0
    separator_id = 1
    special_ids = frozenset({0, 1})
    d_vocab = FIRST + len(WORDS)

    def __init__(self, spells: bool = True):
        self.table = torch.zeros(self.d_vocab, D_IN)
        for number in range(len(WORDS)):
            if spells:
                self.table[FIRST + number, number // EACH] = 4.0
            # Forty words of the first letter have a direction of their own.
            self.table[FIRST + number, LETTERS + number % OWN] = 4.0 if number < OWN else 0.1
        self.table[FIRST:] += 0.1 * torch.randn(len(WORDS), D_IN, generator=torch.Generator().manual_seed(0))

    def strings(self, ids: Sequence[int]) -> list[str]:
        return ["<s>" if number < FIRST else WORDS[number - FIRST] for number in ids]

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[FIRST + WORDS.index(text.split("\n")[-1])] for text in texts]

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return dict.fromkeys(sites, self.table[tokens])


def dictionary(absorbs: bool) -> Autoencoder:
    """One latent per letter; if it absorbs, words of the first letter with a direction of their own have a latent that
    holds the letter, too, and in them the letter's latent is off."""
    autoencoder = StandardSettings(d_sae=D_IN).build(D_IN, torch.Generator()).eval()
    rows = torch.eye(D_IN)
    W_enc = torch.eye(D_IN)
    if absorbs:
        rows[LETTERS:, 0] = 1.0
        W_enc[LETTERS:, 0] = -2.0
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(W_enc)
        autoencoder.get_parameter("b_enc").copy_(torch.where(torch.arange(D_IN) < LETTERS, -2.0, -0.5))
        autoencoder.b_dec.zero_()
    return autoencoder


def measured(
    *autoencoders: Autoencoder, settings: Absorption = SETTINGS, spells: bool = True, kept_in: Path | None = None
) -> list[dict[str, float]]:
    text = Text(kept_in)
    text.model = cast(Any, SpellingModel(spells))
    subject = subject_on(text, autoencoders)
    return [dict(found.numbers[0]) for found in settings.measure(subject)]


def test_a_dictionary_with_a_latent_for_each_letter_absorbs_nothing():
    (plain,) = measured(dictionary(absorbs=False))
    assert plain["absorption"] == 0
    assert plain["absorption_full"] == 0
    assert plain["absorption_splits"] == 1
    assert plain["absorption_letters"] == LETTERS
    assert plain["absorption_probe_f1"] > 0.95
    assert plain["absorption_noise"] == 0
    assert plain.keys() == SETTINGS.meanings.keys()


def test_latents_of_words_that_hold_the_letter_absorb_it():
    plain, absorbing = measured(dictionary(absorbs=False), dictionary(absorbs=True))
    # Two thirds of one of five letters.
    assert 0.05 < absorbing["absorption"] < 0.2
    assert plain["absorption"] == 0
    assert measured(dictionary(absorbs=True))[0] == absorbing


def test_a_dead_dictionary_has_no_score_and_others_keep_their_own():
    dead = dictionary(absorbs=False)
    with torch.no_grad():
        dead.get_parameter("b_enc").fill_(-100)
    plain, none = measured(dictionary(absorbs=False), dead)
    assert plain["absorption"] == 0
    assert math.isnan(none["absorption"])
    assert "absorption_random" not in none


def test_a_model_that_cannot_spell_is_refused():
    with pytest.raises(ValueError, match="do not distinguish first letters"):
        measured(dictionary(absorbs=False), spells=False)


def test_a_further_dictionary_shares_the_letters_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    monkeypatch.setattr(absorption, "letter_probes", lambda *data: fitted.append(1) or letter_probes(*data))
    found = [measured(dictionary(absorbs=True), kept_in=kept_in) for kept_in in (None, tmp_path, tmp_path)]
    assert found[0] == found[1] == found[2]
    # Without a folder, and with an empty one.
    assert len(fitted) == 2 * SETTINGS.splits
