"""Time and memory of the pass over text that finds what latents mean: `python -m benchmarks.latents [--tokens N]`.

Both sides read the same text with the same language model and dictionary, in turns. One side encodes the activations
and keeps nothing. The other one is the whole evaluation: the pass, labels, the store and its pages. The dictionary has
random weights, and thresholds that give the wanted l0; its codes are as sparse as those of a trained one.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.latents import Latents
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.latents.contexts import Contexts, TextContexts
from fsae.latents.control import control_of
from fsae.latents.hits import HitSizes
from fsae.latents.latent_pass import Sizes
from fsae.latents.survey import survey_bytes
from fsae.sources.corpus import Corpus
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.shard import Part
from fsae.sources.source import Source
from fsae.sources.tokens import TextRows

_SETTINGS = ModelSettings(package=Package.smollm2_135m_instruct_q4_1)


class _Text:
    """Text that was read before, for both sides."""

    def __init__(self, rows: TextRows, model: TransformerLensModel, site: Site):
        self._rows, self.model, self.site = rows, model, site
        self.norm_limit = None
        self.rows_at_once = 8
        self.open_model = partial(open_language_model, _SETTINGS)

    def rows(self, part: Part, count: int, heartbeat: Callable[[], None] = lambda: None) -> TextRows:
        return self._rows


def main() -> None:
    """Print the times of both sides, their ratio, and the memory next to its formula."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--l0", type=float, default=50.0)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    model = open_language_model(_SETTINGS)
    site = Site(name=SiteName.resid_mid, layer=options.layer)
    corpus = Corpus(_SETTINGS, DatasetSettings(format=DatasetFormat.python_source))
    rows = corpus.rows(Part.train, options.tokens)
    text = _Text(rows, model, site)
    contexts = TextContexts(rows, model, site, text.rows_at_once, None, text.open_model)
    dictionary = _dictionary(contexts, options.d_sae, options.l0)
    evaluation = Latents(tokens=options.tokens)
    plain, whole = [], []
    for _ in range(options.repeats):
        plain.append(_timed(lambda: _encode(contexts, dictionary)))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(_timed(lambda: _evaluate(evaluation, text, dictionary, Path(folder))))
    ratios = [b / a for a, b in zip(plain, whole, strict=True)]
    print(f"{options.tokens:,} tokens, {options.d_sae:,} latents, l0 {_l0(contexts, dictionary):.0f}")
    print(f"read and encode, nothing kept: {statistics.median(plain):.1f} s")
    print(f"pass, labels, store and pages: {statistics.median(whole):.1f} s")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    own, said = _memory(contexts, dictionary, evaluation)
    print(f"memory of the pass beyond model and dictionary: {own / 1e6:.0f} MB; the formula says {said / 1e6:.0f} MB")


def _dictionary(contexts: Contexts, d_sae: int, l0: float) -> Autoencoder:
    reads = [contexts.read(begin, begin + 8).vectors.float() for begin in range(0, 64, 8)]
    densities = torch.full((d_sae,), l0 / d_sae)
    vectors = torch.cat(reads)
    return control_of(densities.numpy(), vectors, vectors.shape[1], d_sae, seed=1)


@torch.no_grad()
def _encode(contexts: Contexts, dictionary: Autoencoder) -> None:
    for part in range(contexts.parts):
        for read in contexts.blocks(part):
            dictionary.encode(read.vectors.to(dictionary.W_dec), sparse=True)


def _evaluate(evaluation: Latents, text: _Text, dictionary: Autoencoder, folder: Path) -> None:
    source = _SourceOf(text)
    (measured,) = evaluation.measure(Subject([Examined([dictionary], folder=folder)], source))
    for name, write in measured.folders.items():
        write(folder / name)


class _SourceOf(Source):
    """A source that has nothing but its text."""

    def __init__(self, text: _Text):
        self.text = text  # pyright: ignore[reportIncompatibleVariableOverride, reportAttributeAccessIssue]

    first_vectors = batches = held_out = state_dict = load_state_dict = supply = NotImplemented  # pyright: ignore


def _timed(work: Callable[[], None]) -> float:
    gc.collect()
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _l0(contexts: Contexts, dictionary: Autoencoder) -> float:
    read = contexts.read(0, 8)
    codes = dictionary.encode(read.vectors.to(dictionary.W_dec), sparse=True).codes
    return int(codes.firing_counts.sum()) / len(read.vectors)


def _memory(contexts: Contexts, dictionary: Autoencoder, evaluation: Latents) -> tuple[int, int]:
    """Return the growth of this process in a pass, and what the formula says."""
    from fsae.latents.scan import scan

    sizes = Sizes(
        HitSizes(evaluation.top, evaluation.per_bin, evaluation.bins, evaluation.window), evaluation.cofiring, 0
    )
    survey = sizes.survey(dictionary)
    _encode(contexts, dictionary)
    gc.collect()
    before, most = psutil.Process().memory_info().rss, 0

    def watch() -> None:
        nonlocal most
        most = max(most, psutil.Process().memory_info().rss)

    for part in range(contexts.parts):
        scan(part, contexts.blocks(part), [dictionary], [survey], watch)
    return most - before, survey_bytes(survey)


if __name__ == "__main__":
    main()
