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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fsae.analysis.latent_page_data import (
    DEFAULT_SIZES,
    EXPLANATION_COLUMNS,
    SCALING_COLUMNS,
    PageSizes,
    columns,
    explanations_of,
    scaling_of,
    scripts,
)
from fsae.analysis.origin import Origin
from fsae.analysis.packed_arrays import pack
from fsae.analysis.page_templates import TEMPLATES, script_of
from fsae.files import replacing
from fsae.outputs.latent_store import LATENT_COLUMNS, LatentStore

PAGE, PROMPT_PAGE = "index.html", "prompt.html"
# The parts of each page's script.
_SCRIPTS = {
    PAGE: (
        *("text", "appearance", "data", "notes", "columns", "table", "scatter", "overview"),
        *("charts", "contexts", "usage", "latent", "pages"),
    ),
    PROMPT_PAGE: ("text", "appearance", "prompt"),
}
_SIDES = ("first", "second")


@dataclass(frozen=True)
class PromptView:
    """The latents at every token of one prompt.

    Attributes:
        tokens: the texts of the prompt's tokens.
        latents: per token, the latents shown there: the latent, its activation, and the change in the next token's loss
            if the latent is ablated at this token, in nats; None if it was not measured.
        losses: per token, the loss of the next token in nats; None at the last one. Empty if not measured.
        labels: labels of latents, by latent.
        largest: the largest activations of latents in the data of a latent store, by latent. Empty without a store.
    """

    tokens: Sequence[str]
    latents: Sequence[Sequence[tuple[int, float, float | None]]]
    losses: Sequence[float | None] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    largest: Mapping[int, float] = field(default_factory=dict)


def write_latent_pages(store: LatentStore, folder: Path, origin: Origin, sizes: PageSizes = DEFAULT_SIZES) -> Path:
    """Write the pages of a store; earlier pages in the folder are replaced in one step.

    Args:
        store: with the latents.
        folder: of the pages; the store's own is the usual one.
        origin: of the dictionary.
        sizes: of the content.

    Returns:
        The page to open.

    Raises:
        ValueError: the store is damaged.
        OSError: no space is left; earlier pages are untouched.
    """
    return _write(folder, [(origin, store)], None, sizes)


def write_comparison_pages(
    first: LatentStore,
    second: LatentStore,
    matched: pd.DataFrame,
    folder: Path,
    origins: tuple[Origin, Origin],
    sizes: PageSizes = DEFAULT_SIZES,
) -> Path:
    """Write pages that show two dictionaries side by side, a row for each pair of matched latents.

    Args:
        first: a store.
        second: another store.
        matched: pairs of latents: columns `first`, `second` (null if a latent has no match) and `cosine`.
        folder: of the pages; earlier pages in it are replaced in one step.
        origins: of both dictionaries.
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
    return _write(folder, list(zip(origins, (first, second), strict=True)), matched, sizes)


def write_prompt_page(
    folder: Path,
    prompt: PromptView,
    origin: Origin,
    store: LatentStore | None = None,
    name: str = PROMPT_PAGE,
    latents: str = PAGE,
) -> Path:
    """Write the page of a prompt: its tokens, and the latents at each of them.

    Args:
        folder: of the page.
        prompt: the tokens and their latents.
        origin: of the dictionary.
        store: of the latents, whose facts the page shows; None if there is none.
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
        "largest": {str(latent): largest for latent, largest in prompt.largest.items()},
        "pages": latents,
    }
    page = TEMPLATES.get_template("prompt.html.jinja").render(
        title=origin.title,
        provenance=[(origin.title, {**origin.facts, **(_facts(store) if store else {})})],
        content=content,
        **script_of(_SCRIPTS[PROMPT_PAGE]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return folder / name


def _write(
    folder: Path,
    stores: Sequence[tuple[Origin, LatentStore]],
    matched: pd.DataFrame | None,
    sizes: PageSizes,
) -> Path:
    data = folder / f"pages-{_digest(stores, matched, sizes)}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(data) as unfinished:
        unfinished.mkdir()
        for side, (_, store) in zip(_SIDES, stores, strict=False):
            for name, content in scripts(store, sizes):
                _write_script(unfinished, f"{side}-{name}", content)
        if matched is not None:
            _write_script(unfinished, "pairs", _pairs(matched))
    dictionaries = [
        {"title": origin.title, "path": origin.path, "side": side, "meta": asdict(store.meta)}
        for side, (origin, store) in zip(_SIDES, stores, strict=False)
    ]
    title = " and ".join(origin.title for origin, _ in stores)
    meanings = {name: column.meaning for name, column in LATENT_COLUMNS.items()}
    if any(explanations_of(store) for _, store in stores):
        meanings |= EXPLANATION_COLUMNS
    if any(scaling_of(store) for _, store in stores):
        meanings |= SCALING_COLUMNS
    page = TEMPLATES.get_template("index.html.jinja").render(
        title=title,
        # Two dictionaries may have one name.
        provenance=[(origin.title, {**origin.facts, **_facts(store)}) for origin, store in stores],
        meanings=meanings,
        aggregates={name: meaning for _, store in stores for name, meaning in store.meta.meanings.items()},
        content={
            "title": title,
            "dictionaries": dictionaries,
            "columns": columns(),
            "meanings": meanings,
            "latents_per_shard": sizes.latents_per_shard,
            "data": data.name,
        },
        **script_of(_SCRIPTS[PAGE]),
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


def _digest(stores: Sequence[tuple[Origin, LatentStore]], matched: pd.DataFrame | None, sizes: PageSizes) -> str:
    digest = hashlib.sha256(repr(sizes).encode())
    for _, store in stores:
        for file in sorted(store.folder.glob("*.*")):
            if file.suffix in (".parquet", ".json", ".npy", ".npz"):
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        digest.update(repr(sorted(explanations_of(store).items())).encode())
        digest.update(repr(scaling_of(store)).encode())
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
        "data": f"{meta.dataset}, {meta.part.replace('_', '-')} part" if meta.dataset and meta.part else meta.dataset,
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
    return {name: fact for name, fact in facts.items() if fact}


def _pairs(matched: pd.DataFrame) -> str:
    latents = {side: matched[side].fillna(-1).to_numpy(np.int32) for side in _SIDES}
    return pack({**latents, "cosine": matched["cosine"].to_numpy(np.float32)})
