"""A latent store of random words in which latent i is on at word i alone, and a model that sees through it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fsae.latents.excerpts import Excerpt
from fsae.outputs.latent_store import LatentStore, Meta, latent_rows, write_latent_store
from tests.latents.tables import hits_where

LATENTS, WORDS, CONTEXTS, LENGTH = 6, 60, 240, 64


def write_word_store(folder: Path, weights: str = "0123456789abcdef", words: int = WORDS) -> LatentStore:
    """Write the store; latent 5 is dead."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, words, (CONTEXTS, LENGTH)).astype(np.uint16)
    tokens[tokens == LATENTS - 1] = words - 1
    hits = hits_where(codes_at(tokens), top=20, sampled=20, window=24)
    count = np.array([(tokens == latent).sum() for latent in range(LATENTS)])
    others = [np.array([other for other in range(LATENTS) if other != latent], np.int32) for latent in range(LATENTS)]
    table = pd.DataFrame({"latent": np.arange(LATENTS, dtype=np.int32), "count": count, "decoder_neighbours": others})
    table["histogram"] = [np.array([each]) for each in count]
    meta = Meta(
        kind="text", d_sae=LATENTS, architecture="TopK", weights=weights, positions=tokens.size, excluded={},
        contexts=CONTEXTS, context=LENGTH, window=24, top=20, per_bin=20, bin_edges=[0.0, 1.0], seed=0,
    )  # fmt: skip
    strings = {word: f" w{word}" for word in range(words)}
    write_latent_store(folder, latent_rows(table), [hits], meta, tokens=tokens, strings=strings)
    return LatentStore(folder)


def codes_at(tokens: np.ndarray) -> np.ndarray:
    """The codes (contexts, context, d_sae): 1 or more at a latent's word, by its position in the row."""
    on = tokens[..., None] == np.arange(LATENTS)
    return np.where(on, 1 + np.arange(tokens.shape[1])[:, None] / 100, 0).astype(np.float32)


def codes_of(pairs: Sequence[tuple[int, Excerpt]]) -> list[np.ndarray]:
    """What a run's model and dictionary compute for `Negatives`."""
    return [(np.array(excerpt.tokens) == latent).astype(np.float32) for latent, excerpt in pairs]


def is_selection(body: dict[str, Any]) -> bool:
    """Whether a question asks for the numbers of excerpts."""
    return "separated by commas" in body["messages"][0]["content"]


def seeing(body: dict[str, Any]) -> str:
    """The answer of a model that names the first marked word, and judges by the word that a description names."""
    question = body["messages"][-1]["content"]
    if not question.startswith("Description: "):
        return f"Explanation: the word {re.findall(r'<<(.*?)>>', question)[0].split()[0]}"
    description, *lines = question.splitlines()
    word = description.split()[-1]
    if is_selection(body):
        fitting = [str(number) for number, line in enumerate(lines, 1) if word in line.split('"')[1].split()]
        return ", ".join(fitting) or "none"
    marked = "<<" in question
    answers = [
        any(word in part.split() for part in (re.findall(r"<<(.*?)>>", line) if marked else [line.split('"')[1]]))
        for line in lines
    ]
    return "\n".join(f"{number}: {'yes' if answer else 'no'}" for number, answer in enumerate(answers, 1))
