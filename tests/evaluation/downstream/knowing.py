"""A model that knows two attributes of words, and dictionaries that hold them apart or together."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.sources.source import HeldOutText
from tests.evaluation.downstream.texts import Text

VALUES, EACH = 3, 4
ATTRIBUTES = ("colour", "size")
D_IN = 2 * VALUES
# By entity, its colour and its size.
OWN = {f"w{number}": (number % VALUES, number // VALUES % VALUES) for number in range(VALUES * VALUES * EACH)}
_TEMPLATES = {name: [f"the %s has a {name}", f"of what {name} is %s ? {name}"] for name in ATTRIBUTES}
_WORDS = ["<s>", "<end>", *["the", "has", "a", "of", "what", "is", "?"], *ATTRIBUTES, *OWN]
_WORDS += [f"{name}{value}" for name in ATTRIBUTES for value in range(VALUES)]


class KnowingModel:
    """A word's activation is one-hot in its colour and in its size; the last word is the question."""

    name = "knowing"
    context_limit = 64
    bos_token_id = 0
    separator_id = 1
    special_ids = frozenset({0, 1})

    def __init__(self, knows: bool = True):
        self.table = torch.zeros(len(_WORDS), D_IN)
        self.asked = torch.zeros(len(_WORDS), D_IN)
        self.read_out = torch.zeros(D_IN, len(_WORDS))
        for word, own in OWN.items():
            for number, value in enumerate(own):
                self.table[_WORDS.index(word), number * VALUES + value] = 1.0
        for number, name in enumerate(ATTRIBUTES):
            self.asked[_WORDS.index(name), number * VALUES : (number + 1) * VALUES] = float(knows)
            for value in range(VALUES):
                self.read_out[number * VALUES + value, _WORDS.index(f"{name}{value}")] = 4.0

    def check_splice(self, site: Any) -> None: ...

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_WORDS.index(word) for word in text.split()] for text in texts]

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[each.span() for each in re.finditer(r"\S+", text)] for text in texts]

    def differentiable_logits(self, tokens: Tensor, *replacements: Any, at: Tensor | None = None) -> Tensor:
        x = self.table[tokens]
        for _, function in replacements:
            x = function(x)
        logits = (x.cumsum(1) * self.asked[tokens]) @ self.read_out
        return logits if at is None else logits[torch.arange(len(logits)), at][:, None]

    @torch.no_grad()
    def logits(self, tokens: Tensor, *replacements: Any, at: Tensor | None = None) -> Tensor:
        return self.differentiable_logits(tokens, *replacements, at=at)


def knowing_text(knows: bool = True, kept_in: Path | None = None) -> HeldOutText:
    text = Text(kept_in)
    text.model = cast(Any, KnowingModel(knows))
    return cast(Any, text)


def write_entities(folder: Path) -> str:
    """Write the words in RAVEL's layout."""
    values = {
        word: {name: f"{name}{value}" for name, value in zip(ATTRIBUTES, own, strict=True)} for word, own in OWN.items()
    }
    for name, content in {"entity_attributes": values, "attribute_to_prompts": _TEMPLATES}.items():
        (folder / f"ravel_word_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def apart() -> Autoencoder:
    """A latent per value of each attribute."""
    return _dictionary(torch.eye(D_IN), 0.0)


def together() -> Autoencoder:
    """A latent per pair of a colour and a size."""
    pairs = [
        torch.eye(VALUES)[list(each)].flatten() for each in torch.cartesian_prod(*2 * [torch.arange(VALUES)]).tolist()
    ]
    return _dictionary(torch.stack(pairs), -1.0)


def _dictionary(rows: Tensor, bias: float) -> Autoencoder:
    autoencoder = StandardSettings(d_sae=len(rows)).build(D_IN, torch.Generator()).eval()
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
        autoencoder.get_parameter("b_enc").fill_(bias)
        autoencoder.b_dec.zero_()
    return autoencoder
