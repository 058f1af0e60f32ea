"""The pages of a latent store: a table of all latents and a page for each of them, without a server or a network.

    index.html                   texts, style and script of the pages
    pages-XXXXXXXX/              data of one store, named by a digest of it
        first-index.js           the numbers and labels of all latents
        first-tokens.js          token ids and their texts
        first-shard-0000.js      lists and hits of some latents
        second-...               the second dictionary of a comparison
        pairs.js                 the latents of a comparison that match

A page that is opened as a file may load scripts, and nothing else. So all data are scripts that call one function with
packed arrays (`fsae.analysis.packed_arrays`).
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from fsae.analysis.packed_arrays import in_few_bytes, pack, pack_lists, rounded, smallest
from fsae.files import replacing
from fsae.outputs.latent_store import LATENT_COLUMNS, TOP, LatentStore

PAGE, PROMPT_PAGE = "index.html", "prompt.html"
_FOLDER = Path(__file__).with_name("latent_view")


def _file(name: str) -> Markup:
    """Return a file of the templates' folder, to be part of a page as it is."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.globals["file"] = _file
# The order of the columns is the order in the table.
_TEMPLATES.policies["json.dumps_kwargs"] = {"sort_keys": False}
# Latents whose hits are read from the store at a time.
_READ_AT_ONCE = 1024
# Lists show three digits: their numbers have a relative error below 1e-3. All other numbers are exact.
_LIST_BITS = 9
_SIDES = ("first", "second")
# A part of these lists would be wrong.
_WHOLE_LISTS = ("histogram", "trigger")


@dataclass(frozen=True)
class PageSizes:
    """Sizes that decide how many bytes a latent takes.

    Attributes:
        latents_per_shard: latents in one file.
        top: top contexts per latent.
        top_window: positions on either side of a top context's peak.
        per_bin: samples per latent and activation bin, at most.
        samples: samples per latent, at most: the more bins a latent has, the fewer of each, but one at least.
        sample_window: positions on either side of a sample's peak.
        listed: entries of each list: neighbours, co-firing, logits.
        top_tokens: peak tokens per latent that the table shows and searches.
    """

    latents_per_shard: int = 128
    top: int = 20
    top_window: int = 24
    per_bin: int = 3
    samples: int = 24
    sample_window: int = 10
    listed: int = 10
    top_tokens: int = 5


@dataclass(frozen=True)
class PromptView:
    """The latents at every token of one prompt.

    Attributes:
        tokens: the texts of the prompt's tokens.
        latents: per token, the latents shown there: the latent, its activation, and the change in the next token's loss
            if the latent is ablated at this token, in nats; None if it was not measured.
        losses: per token, the loss of the next token in nats; None at the last one. Empty if not measured.
        labels: labels of latents, by latent.
    """

    tokens: Sequence[str]
    latents: Sequence[Sequence[tuple[int, float, float | None]]]
    losses: Sequence[float | None] = ()
    labels: Mapping[int, str] = field(default_factory=dict)


def write_latent_pages(
    store: LatentStore, folder: Path, title: str, provenance: Mapping[str, str], sizes: PageSizes = PageSizes()
) -> Path:
    """Write the pages of a store; earlier pages in the folder are replaced in one step.

    Args:
        store: with the latents.
        folder: of the pages; the store's own is the usual one.
        title: the dictionary's name.
        provenance: facts about the origin of the dictionary that the store does not have, by name.
        sizes: of the content.

    Returns:
        The page to open.

    Raises:
        ValueError: the store is damaged.
        OSError: no space is left; earlier pages are untouched.
    """
    return _write(folder, title, [(title, store)], provenance, None, sizes)


def write_comparison_pages(
    first: LatentStore,
    second: LatentStore,
    matched: pd.DataFrame,
    folder: Path,
    titles: tuple[str, str],
    provenance: Mapping[str, str],
    sizes: PageSizes = PageSizes(),
) -> Path:
    """Write pages that show two dictionaries side by side, a row for each pair of matched latents.

    Args:
        first: a store.
        second: another store.
        matched: pairs of latents: columns `first`, `second` (null if a latent has no match) and `cosine`.
        folder: of the pages; earlier pages in it are replaced in one step.
        titles: the names of both dictionaries.
        provenance: facts about the comparison, by name.
        sizes: of the content.

    Returns:
        The page to open.

    Raises:
        ValueError: a store is damaged, or a pair names a latent that its dictionary lacks.
        OSError: no space is left; earlier pages are untouched.
    """
    for side, store in zip(_SIDES, (first, second), strict=True):
        latents = matched[side].dropna().astype(int).tolist()
        outside = [latent for latent in latents if not 0 <= latent < store.meta.d_sae]
        if outside:
            raise ValueError(
                f"{store.folder}: the pairs name latent {outside[0]}, and the dictionary has the latents 0 "
                f"to {store.meta.d_sae - 1}; match the latents of these two stores again"
            )
    title = f"{titles[0]} and {titles[1]}"
    return _write(folder, title, list(zip(titles, (first, second), strict=True)), provenance, matched, sizes)


def write_prompt_page(
    folder: Path,
    prompt: PromptView,
    title: str,
    provenance: Mapping[str, str],
    name: str = PROMPT_PAGE,
    latents: str = PAGE,
) -> Path:
    """Write the page of a prompt: its tokens, and the latents at each of them.

    Args:
        folder: of the page.
        prompt: the tokens and their latents.
        title: the dictionary's name.
        provenance: facts about the origin of the numbers, by name.
        name: of the file; an earlier one is replaced.
        latents: the address of the latents' page, relative to the folder.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    assert len(prompt.latents) == len(prompt.tokens)
    assert len(prompt.losses) in (0, len(prompt.tokens))
    content = {
        "tokens": list(prompt.tokens),
        "latents": [[list(found) for found in token] for token in prompt.latents],
        "losses": list(prompt.losses),
        "labels": {str(latent): label for latent, label in prompt.labels.items()},
        "pages": latents,
    }
    page = _TEMPLATES.get_template("prompt.html.jinja").render(
        title=title,
        provenance={"": provenance},
        content=content,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return folder / name


def _write(
    folder: Path,
    title: str,
    stores: Sequence[tuple[str, LatentStore]],
    provenance: Mapping[str, str],
    matched: pd.DataFrame | None,
    sizes: PageSizes,
) -> Path:
    data = folder / f"pages-{_digest(stores, matched, sizes)}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(data) as unfinished:
        unfinished.mkdir()
        for side, (_, store) in zip(_SIDES, stores, strict=False):
            for name, content in _scripts(store, sizes):
                _write_script(unfinished, f"{side}-{name}", content)
        if matched is not None:
            _write_script(unfinished, "pairs", _pairs(matched))
        if data.exists():
            shutil.rmtree(data)
    dictionaries = [
        {"title": name, "side": side, "meta": asdict(store.meta)}
        for side, (name, store) in zip(_SIDES, stores, strict=False)
    ]
    page = _TEMPLATES.get_template("index.html.jinja").render(
        title=title,
        provenance={**({"": provenance} if provenance else {}), **{name: _facts(store) for name, store in stores}},
        content={
            "title": title,
            "dictionaries": dictionaries,
            "columns": _columns(),
            "meanings": {name: column.meaning for name, column in LATENT_COLUMNS.items()},
            "latents_per_shard": sizes.latents_per_shard,
            "data": data.name,
        },
    )
    with replacing(folder / PAGE) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    for earlier in folder.glob("pages-*/"):
        if earlier != data:
            shutil.rmtree(earlier)
    return folder / PAGE


def _write_script(folder: Path, name: str, packed: str) -> None:
    # By the name the page knows which of its requests is answered.
    (folder / f"{name}.js").write_text(f'fsaeLatents("{name}","{packed}")\n', encoding="ascii")


def _digest(stores: Sequence[tuple[str, LatentStore]], matched: pd.DataFrame | None, sizes: PageSizes) -> str:
    digest = hashlib.sha256(repr(sizes).encode())
    for _, store in stores:
        for file in sorted(store.folder.glob("*.*")):
            if file.suffix in (".parquet", ".json", ".npy", ".npz"):
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    if matched is not None:
        digest.update(matched.to_csv().encode())
    return digest.hexdigest()[:8]


def _facts(store: LatentStore) -> dict[str, str]:
    """Return the store's facts that every page shows, by name."""
    meta = store.meta
    left_out = ", ".join(f"{count} {reason}" for reason, count in meta.excluded.items() if count)
    text = meta.kind == "text"
    facts = {
        "model": meta.model,
        "site": meta.site,
        "data": " ".join(filter(None, [meta.dataset, meta.part])),
        "read": f"{meta.contexts} contexts of {meta.context} tokens" if text else f"{meta.contexts} samples",
        "counted": f"{meta.positions} {'tokens' if text else 'samples'}",
        "left out": left_out or "nothing",
        "latents": f"{meta.d_sae}, {meta.architecture}",
        "weights": meta.weights,
        "unit of codes": meta.unit,
        "type of the vectors": meta.dtype,
        "hits": f"{meta.top} top contexts per latent, and {meta.per_bin} samples per activation bin, drawn with seed "
        f"{meta.seed}; the pages may show fewer",
        "written by": f"fsae {meta.fsae}, format {meta.version} of the store",
    }
    return {name: str(fact) for name, fact in facts.items() if fact}


def _columns() -> dict[str, str]:
    """Return the columns of the table, with the kind of their values: whole numbers, numbers or texts."""
    kinds = {"int": "whole", "flo": "number", "dou": "number", "str": "text"}
    found = {name: kinds.get(str(column.type)[:3]) for name, column in LATENT_COLUMNS.items()}
    return {name: kind for name, kind in found.items() if kind}


def _lists() -> dict[str, bool]:
    """Return the columns that hold lists, and whether of whole numbers."""
    return {
        name: "int" in str(column.type)
        for name, column in LATENT_COLUMNS.items()
        if str(column.type).startswith("list")
    }


def _pairs(matched: pd.DataFrame) -> str:
    latents = {side: matched[side].fillna(-1).to_numpy(np.int32) for side in _SIDES}
    return pack({**latents, "cosine": matched["cosine"].to_numpy(np.float32)})


def _scripts(store: LatentStore, sizes: PageSizes) -> Iterator[tuple[str, str]]:
    """Yield each script of one dictionary: its name and its packed arrays."""
    table = store.table
    index = _index(table, sizes)
    if store.samples:
        # Pictures and curves share one scale, on which a few extreme values do not count.
        values = np.stack(list(store.samples.values()))
        index["scale"] = np.quantile(values, [0.001, 0.999]).astype(np.float32)
    yield "index", pack(index)
    numbers = np.empty(0, np.int64)
    if store.meta.kind == "text":
        ids = _tokens_by_count(store)
        texts = [store.strings.get(each, f"[token {each}]") for each in ids.tolist()]
        yield "tokens", pack({"ids": ids.astype(np.uint32), "texts": texts})
        numbers = np.empty(ids.max(initial=0) + 1, np.int64)
        numbers[ids] = np.arange(len(ids))
    step = sizes.latents_per_shard
    at_once = max(step, _READ_AT_ONCE // step * step)
    for begin in range(0, len(table), at_once):
        hits = _shown(store.hits_between(begin, begin + at_once), sizes)
        for first in range(begin, min(begin + at_once, len(table)), step):
            rows = table.iloc[first : first + step]
            own = hits.loc[hits["latent"].between(first, first + len(rows) - 1)]
            found = _texts(own, store, numbers, sizes) if store.meta.kind == "text" else _samples(own, store)
            yield f"shard-{first // step:04d}", pack(_list_arrays(rows, sizes) | _hits(own, first, len(rows)) | found)


def _index(table: pd.DataFrame, sizes: PageSizes) -> dict[str, np.ndarray | list[str]]:
    arrays: dict[str, np.ndarray | list[str]] = {}
    for name, kind in _columns().items():
        if kind == "text":
            arrays[name] = [text if isinstance(text, str) else "" for text in table[name]]
        elif kind == "whole":
            # A null of a column of whole numbers makes it one of floats.
            values = table[name].to_numpy(np.float64, na_value=np.nan)
            fits = np.isfinite(values).all() and values.min(initial=0) >= 0 and values.max(initial=0) < 2**32
            arrays[name] = smallest(values.astype(np.int64)) if fits else values
        else:
            arrays[name] = table[name].to_numpy(np.float32, na_value=np.nan)
    tokens = [() if each is None else each[: sizes.top_tokens] for each in table["top_tokens"]]
    return arrays | pack_lists("top_tokens", tokens, np.uint32)


def _list_arrays(rows: pd.DataFrame, sizes: PageSizes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, whole in _lists().items():
        lists = [() if each is None else each for each in rows[name]]
        if name not in _WHOLE_LISTS:
            lists = [each[: sizes.listed] for each in lists]
        packed = pack_lists(name, lists, np.int64 if whole else np.float32)
        packed[name] = smallest(packed[name]) if whole else rounded(packed[name], _LIST_BITS)
        arrays |= packed
    return arrays


def _shown(hits: pd.DataFrame, sizes: PageSizes) -> pd.DataFrame:
    """Return the hits that the pages show, in their order: top contexts, then samples of the highest bin first."""
    sampled = hits["group"] != TOP
    bins = hits["bin"].where(sampled).groupby(hits["latent"]).transform("nunique").to_numpy(int)
    per_bin = np.clip(sizes.samples // np.maximum(bins, 1), 1, sizes.per_bin)
    ordered = hits.assign(sampled=sampled, order=np.where(sampled, -hits["bin"].astype(int), 0))
    shown = ordered.loc[hits["rank"] < np.where(sampled, per_bin, sizes.top)]
    return shown.sort_values(["latent", "sampled", "order", "rank"], kind="stable")


def _hits(hits: pd.DataFrame, first: int, latents: int) -> dict[str, np.ndarray]:
    own = hits["latent"].to_numpy() - first
    sampled = hits["sampled"].to_numpy(bool)
    return {
        "tops": np.bincount(own[~sampled], minlength=latents).astype(np.uint16),
        "samples": np.bincount(own[sampled], minlength=latents).astype(np.uint16),
        "bin": smallest(hits["bin"].to_numpy()),
        "value": hits["value"].to_numpy(np.float32),
    }


def _tokens_by_count(store: LatentStore) -> Int[np.ndarray, " tokens"]:
    """Return the ids of all tokens of the store, the commonest first: their places are small numbers."""
    counts = np.bincount(np.asarray(store.tokens).ravel(), minlength=max(store.strings, default=-1) + 1)
    named = np.zeros(len(counts), bool)
    named[list(store.strings)] = True
    order = np.argsort(-counts, kind="stable")
    return order[(counts > 0)[order] | named[order]]


def _texts(
    hits: pd.DataFrame, store: LatentStore, numbers: Int[np.ndarray, " vocabulary"], sizes: PageSizes
) -> dict[str, np.ndarray]:
    """Return the windows of hits: text that several windows share is held once, in the order of the contexts."""
    context, position = (hits[name].to_numpy(np.int64) for name in ("context", "position"))
    begin = hits["begin"].to_numpy(np.int64)
    codes = list(hits["values"])
    read = np.array([len(each) for each in codes], np.int64)
    reach = np.where(hits["sampled"], sizes.sample_window, sizes.top_window)
    low, high = np.maximum(begin, position - reach), np.minimum(begin + read, position + reach + 1)
    lengths = high - low
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    window = np.concatenate(codes) if len(codes) else np.empty(0, np.float32)
    window = window[np.repeat(np.cumsum(read) - read + low - begin, lengths) + within]
    width = store.meta.context
    places = np.unique(np.repeat(context * width + low, lengths) + within)
    # A run is a stretch of one context.
    breaks = np.flatnonzero((np.diff(places, prepend=-2) != 1) | (places % width == 0))
    # The code at the peak is the hit's value.
    on = (window != 0) & (within != np.repeat(position - low, lengths))
    return {
        "tokens": in_few_bytes(numbers[store.tokens[places // width, places % width]]),
        "run_first": smallest(np.diff(breaks, prepend=0)),
        "run_context": smallest(np.diff(places[breaks] // width, prepend=0)),
        "run_position": smallest(places[breaks] % width),
        "first": smallest(np.searchsorted(places, context * width + low)),
        "length": smallest(lengths),
        "peak": smallest(position - low),
        "codes": smallest(np.bincount(np.repeat(np.arange(len(hits)), lengths)[on], minlength=len(hits))),
        "code_place": smallest(within[on]),
        "code": window[on].astype(np.float32),
    }


def _samples(hits: pd.DataFrame, store: LatentStore) -> dict[str, np.ndarray]:
    """Return the samples of hits, each once, in 255 steps between its least and its greatest value."""
    ids, local = np.unique(hits["context"].to_numpy(), return_inverse=True)
    vectors = np.stack([store.samples[each] for each in ids.tolist()]) if len(ids) else np.empty((0, 1), np.float32)
    low, high = vectors.min(1, keepdims=True), vectors.max(1, keepdims=True)
    steps = np.rint((vectors - low) / np.maximum(high - low, np.finfo(np.float32).tiny) * 255)
    return {
        "sample_ids": ids.astype(np.uint32),
        "sample": smallest(local),
        "low": low[:, 0].astype(np.float32),
        "high": high[:, 0].astype(np.float32),
        "steps": steps.astype(np.uint8).ravel(),
    }
