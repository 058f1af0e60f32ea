"""Time and memory of the pass over text that finds what latents mean.

    python -m benchmarks.latents [--tokens N]                     SmolLM2-135M and a dictionary of 4,608 latents
    python -m benchmarks.latents --synthetic 16384 [--tokens N]   synthetic codes of so many latents

Both sides read the same text with the same language model and dictionary, in turns. One side encodes the activations
and keeps nothing. The other one is the whole evaluation: the pass, labels, the store and its pages. Memory is the peak
of one side minus that of the other one; that of the pass alone is measured on the first 100,000 tokens, next to its
formula. `--repeats 0` measures that alone.

The dictionary has random weights, and thresholds that give the wanted l0; its codes are as sparse as those of a trained
one. Synthetic codes follow from a token and the one before it, and their sizes fill all activation bins.
"""

import argparse
import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import AffineMap, Encoding
from fsae.evaluation.latents import Latents
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.latents.contexts import Contexts, TextContexts
from fsae.latents.control import control_of
from fsae.latents.footprint import Footprint, footprint
from fsae.latents.hits import HitSizes
from fsae.latents.latent_pass import Sizes
from fsae.latents.sampling import hash_of
from fsae.latents.scan import joined
from fsae.latents.slices import Slices, survey_slices
from fsae.sources.corpus import Corpus
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.layout import Sites
from fsae.sources.shard import Part
from fsae.sources.source import Source
from fsae.sources.tokens import TextRows
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

_SETTINGS = ModelSettings(package=Package.smollm2_135m_instruct_q4_1)
_VOCABULARY, _CONTEXT, _SYNTHETIC_WIDTH = 50_000, 128, 64
# Octaves over which synthetic codes are spread: the twelve bins that are sampled.
_OCTAVES = 6
_MEMORY_TOKENS = 100_000


class _Text:
    """Text that was read before, for both sides."""

    def __init__(self, rows: TextRows, model: Any, site: Site):
        self._rows, self.model, self.site = rows, model, site
        self.sites = Sites((site,), (site,))
        self.norm_limits = None
        self.rows_at_once = 8
        self.dataset = "text"
        self.reopen_models = _reopened

    def rows(self, part: Part, count: int, heartbeat: Callable[[], None] = lambda: None) -> TextRows:
        return self._rows

    def contexts(self, tokens: int | None = None) -> TextContexts:
        """Return the text, or about so many tokens of it."""
        end = None if tokens is None else max(1, tokens // self._rows.tokens.shape[1])
        rows = TextRows(*(each[:end] for each in (self._rows.tokens, self._rows.keep, self._rows.documents)))
        return TextContexts(rows, self.model_at, self.sites, self.rows_at_once, None, self.reopen_models)

    def model_at(self, site: Site) -> Any:
        return self.model


def _reopened() -> Callable[[Site], TransformerLensModel]:
    again = open_language_model(_SETTINGS)
    return lambda site: again


class _SourceOf(Source):
    """A source that has nothing but its text."""

    def __init__(self, text: _Text):
        self.text = text  # pyright: ignore[reportIncompatibleVariableOverride, reportAttributeAccessIssue]

    first_vectors = batches = held_out = state_dict = load_state_dict = supply = NotImplemented  # pyright: ignore


class _SyntheticModel:
    """A language model whose activations are the numbers of a token and the one before it."""

    name, dtype, d_vocab = "synthetic", torch.float32, _VOCABULARY

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        found = torch.zeros(*tokens.shape, _SYNTHETIC_WIDTH)
        found[..., 0], found[..., 1] = tokens, tokens.roll(1, dims=1)
        return dict.fromkeys(sites, found)

    def into_stream(self, site: Site) -> None:
        return None

    def strings(self, ids: Sequence[int]) -> list[str]:
        return [f" word{number}" for number in ids]


class _SyntheticDictionary(Autoencoder):
    """A dictionary whose codes are drawn by a hash of the sample."""

    def __init__(self, d_sae: int, l0: int):
        super().__init__(_SYNTHETIC_WIDTH, d_sae)
        self._l0 = l0
        self.W_dec = nn.Parameter(torch.randn(d_sae, _SYNTHETIC_WIDTH, generator=torch.Generator().manual_seed(0)))
        self.W_enc = self.W_dec.T
        self.b_dec = nn.Parameter(torch.zeros(_SYNTHETIC_WIDTH))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        number = (x[:, 0].long() << 20 | x[:, 1].long())[:, None] * self._l0 + torch.arange(self._l0)
        # One latent of each of `l0` ranges, so that no latent is drawn twice.
        width = self.d_sae // self._l0
        latents = torch.arange(self._l0) * width + hash_of(number, 0) % width
        values = torch.exp2(hash_of(number, 1) / 2**31 * -_OCTAVES)
        codes = Codes(values.flatten(), Pattern.of_indices(latents, self.d_sae))
        return Encoding(codes, AffineMap(x, self.W_enc, torch.zeros(self.d_sae)), {})

    settings_type = change_unit = to_saelens = NotImplemented  # pyright: ignore


def main() -> None:
    """Print the times of both sides, their ratio, and the memory next to its formula."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--l0", type=float, default=50.0)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--synthetic", type=int, metavar="LATENTS", help="synthetic codes of so many latents")
    parser.add_argument("--memory-gb", type=float, help="eval.latents.memory_gb")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)

    if options.synthetic:
        # As many codes of every latent as 16,384 latents have with the given l0.
        l0 = max(1, round(options.l0 * options.synthetic / 16_384))
        text, dictionary = _synthetic_text(options.tokens), _SyntheticDictionary(options.synthetic, l0).eval()
        evaluation = Latents(tokens=options.tokens, control=0, triggers=0, memory_gb=options.memory_gb)
    else:
        text = _python_text(options.tokens, options.layer)
        dictionary = _dictionary(text.contexts(), options.d_sae, options.l0)
        evaluation = Latents(tokens=options.tokens, memory_gb=options.memory_gb)
    contexts = text.contexts()
    codes = _codes(contexts, dictionary)
    l0 = int(codes.firing_counts.sum()) / codes.shape[0]
    print(f"{options.tokens:,} tokens, {dictionary.d_sae:,} latents, l0 {l0:.0f}")
    measured, said = _memory(text.contexts(_MEMORY_TOKENS), dictionary, evaluation, codes)
    print(
        f"memory of the pass beyond reading and encoding: {measured / 1e6:.0f} MB; by the formula "
        f"{said.kept / 1e6:.0f} MB are kept, and {said.most / 1e6:.0f} MB taken while a block is surveyed"
    )
    if options.repeats:
        _compare(evaluation, text, dictionary, options.repeats)


def _compare(evaluation: Latents, text: "_Text", dictionary: Autoencoder, repeats: int) -> None:
    plain, whole, size = [], [], 0
    for _ in range(repeats):
        plain.append(_timed(lambda: _encode(text.contexts(), dictionary)))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(_timed(lambda: _evaluate(evaluation, text, dictionary, Path(folder))))
            size = sum(file.stat().st_size for file in Path(folder).glob("latents/pages-*/*"))
    ratios = [b / a for (a, _), (b, _) in zip(plain, whole, strict=True)]
    print(f"read and encode, nothing kept: {statistics.median(seconds for seconds, _ in plain):.1f} s")
    print(f"pass, labels, store and pages: {statistics.median(seconds for seconds, _ in whole):.1f} s")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    beyond = max(peak for _, peak in whole) - max(peak for _, peak in plain)
    print(f"memory of all of it beyond reading and encoding: {beyond / 1e6:.0f} MB")
    print(f"pages: {size / 1e3 / dictionary.d_sae:.1f} kB per latent")


def _python_text(tokens: int, layer: int) -> _Text:
    corpus = Corpus(_SETTINGS, DatasetSettings(format=DatasetFormat.python_source))
    model = open_language_model(_SETTINGS)
    return _Text(corpus.rows(Part.train, tokens), model, Site(name=SiteName.resid_mid, layer=layer))


def _synthetic_text(tokens: int) -> _Text:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCABULARY, (max(1, tokens // _CONTEXT), _CONTEXT), generator=generator)
    rows = TextRows(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    return _Text(rows, _SyntheticModel(), Site(name=SiteName.resid_mid, layer=0))


def _dictionary(contexts: Contexts, d_sae: int, l0: float) -> Autoencoder:
    reads = [contexts.read(begin, begin + 8).vectors.float() for begin in range(0, 64, 8)]
    densities = torch.full((d_sae,), l0 / d_sae)
    vectors = torch.cat(reads)
    return control_of(densities.numpy(), vectors, vectors.shape[1], d_sae, seed=1)


@torch.no_grad()
def _encode(contexts: Contexts, dictionary: Autoencoder) -> None:
    for part in range(contexts.parts):
        for read in joined(contexts.blocks(part)):
            dictionary.encode(read.vectors.to(dictionary.W_dec), sparse=True)


def _evaluate(evaluation: Latents, text: _Text, dictionary: Autoencoder, folder: Path) -> None:
    source = _SourceOf(text)
    (measured,) = evaluation.measure(Subject([Examined([dictionary], folder=folder)], source))
    for name, write in measured.folders.items():
        write(folder / name)


def _timed(work: Callable[[], None]) -> tuple[float, int]:
    """Return the seconds that something takes, and the peak of this process's memory in bytes."""
    gc.collect()
    # The kernel then forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return seconds, int(status["VmHWM"].split()[0]) * 1024


@torch.no_grad()
def _codes(contexts: Contexts, dictionary: Autoencoder) -> Codes:
    (read, *_) = joined(contexts.read(begin, begin + 8) for begin in range(0, min(contexts.count, 64), 8))
    return dictionary.encode(read.vectors.to(dictionary.W_dec), sparse=True).codes


def _memory(contexts: Contexts, dictionary: Autoencoder, evaluation: Latents, codes: Codes) -> tuple[int, Footprint]:
    """Return the memory of a pass beyond that of reading and encoding, and its footprint by the formula."""
    hits = HitSizes(evaluation.top, evaluation.per_bin, evaluation.bins, evaluation.window)
    sizes = Sizes(hits, evaluation.cofiring, seed=0)
    # The first one also fills what the language model keeps.
    *_, (_, plain) = [_timed(lambda: _encode(contexts, dictionary)) for _ in range(2)]
    _, peak = _timed(lambda: survey_slices(contexts, [Slices([dictionary], sizes, 1)], lambda: None))
    return peak - plain, footprint(sizes, codes, contexts.count * contexts.length, contexts.parts)


if __name__ == "__main__":
    main()
