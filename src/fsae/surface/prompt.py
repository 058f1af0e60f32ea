"""A prompt seen by a dictionary: which latents are on at every token, and what they do to the next token's loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.analysis.latent_pages import PromptView
from fsae.language_models.activations import joined_at
from fsae.language_models.sites import Site
from fsae.outputs.latent_store import LatentStore
from fsae.sources.massive import within_all
from fsae.surface.dictionary import Dictionary
from fsae.surface.language_model import LanguageModel

# Entries of logits that are held at once.
_ENTRIES_AT_ONCE = 2**25


def view_prompt(
    dictionary: Dictionary,
    text: str,
    model: LanguageModel,
    store: LatentStore | None = None,
    latents: int = 10,
    entries_at_once: int = _ENTRIES_AT_ONCE,
) -> PromptView:
    """Return the strongest latents at each token of a text, each with the effect of its ablation.

    A latent is ablated at one token by a forward pass of its own: its code times its decoder row is subtracted from the
    activation that the dictionary writes, so that everything else that it does not explain stays. It is not measured of
    a dictionary that writes several sites, because a change at one of them reaches the later ones. Tokens that training
    left out have no latents.

    Args:
        dictionary: of a language model's activations.
        text: the prompt; it begins with a BOS if the text of the dictionary's training did.
        model: the language model of the dictionary.
        store: of the latents' labels and largest activations, if there is one.
        latents: the most latents per token.
        entries_at_once: logits in memory at once.

    Raises:
        ValueError: the dictionary does not name its sites, or the text has less than two tokens or too many.
    """
    sites = dictionary.sites
    if sites is None:
        raise ValueError(f"{dictionary!r} does not name the site of its vectors, so it cannot read a text")
    (row,) = model.token_ids([text], dictionary.provenance.prepend_bos)
    if len(row) < 2:
        raise ValueError(f"the prompt {text!r} has {len(row)} tokens; it needs two, so that one can be predicted")
    activations = joined_at(model.model_at, row[None], sites.input)[0]
    codes = dictionary.encode(activations.float())
    (counted,) = dictionary.left_out(model).counted(row[None], torch.ones_like(row[None], dtype=torch.bool))
    codes[~(counted & _within(dictionary, activations).cpu()).to(codes.device)] = 0
    strongest = codes.abs().topk(min(latents, dictionary.d_sae), dim=1)
    position, place = strongest.values.nonzero(as_tuple=True)
    latent = strongest.indices[position, place]
    code = codes[position, latent]
    losses = _losses(model.model.logits(row[None])[0], row)
    changes: Sequence[float | None] = [None] * len(code)
    if len(sites.target) == 1:
        changes = _changes(dictionary, model, sites.target[0], row, position, latent, code, entries_at_once).tolist()
    found: list[list[tuple[int, float, float | None]]] = [[] for _ in row]
    numbered = (each.tolist() for each in (position, latent, code))
    for where, *numbers, change in zip(*numbered, changes, strict=True):
        # The last token has no next one.
        found[where].append((int(numbers[0]), numbers[1], change if where < len(row) - 1 else None))
    return PromptView(
        tokens=model.model.strings(row.tolist()),
        latents=found,
        losses=[*losses[:-1].tolist(), None],
        labels=_labels(store, latent),
        largest=_largest(store, latent),
    )


def _within(dictionary: Dictionary, activations: Float[Tensor, "position d_in"]) -> Bool[Tensor, " position"]:
    """Return at which positions no vector is massive at any site that the dictionary reads."""
    said = dictionary.provenance
    parts = dictionary.autoencoder.ends.input.split(activations)
    limits = said.max_activation_norms or [said.max_activation_norm] * len(parts)
    limited = [(part, limit) for part, limit in zip(parts, limits, strict=False) if limit is not None]
    if not limited:
        return torch.ones(len(activations), dtype=torch.bool, device=activations.device)
    return within_all(*zip(*limited, strict=True))


def _losses(logits: Float[Tensor, "position d_vocab"], row: Int[Tensor, " position"]) -> Float[Tensor, " position"]:
    """Return -log p(next token) at each position; 0 at the last one."""
    losses = F.cross_entropy(logits[:-1].float(), row[1:].to(logits.device), reduction="none")
    return F.pad(losses, (0, 1)).cpu()


def _changes(
    dictionary: Dictionary,
    model: LanguageModel,
    site: Site,
    row: Tensor,
    position: Tensor,
    latent: Tensor,
    code: Tensor,
    entries_at_once: int,
) -> Float[Tensor, " ablations"]:
    """Return how much the loss at each position grows if the latent there is ablated."""
    rows_at_once = max(1, entries_at_once // (len(row) * model.model.d_vocab) - 1)
    changes = []
    for where, which, value in zip(*(each.split(rows_at_once) for each in (position, latent, code)), strict=True):
        written = value[:, None] * dictionary.W_dec[which]

        def without(
            activations: Tensor, where: Tensor = where, written: Tensor = written
        ) -> Float[Tensor, "row position d"]:
            edited = activations.clone()
            rows = torch.arange(1, len(where) + 1, device=edited.device)
            edited[rows, where.to(edited.device)] -= written.to(edited)
            return edited

        # The first row is not edited: rounding depends on the number of rows.
        logits = model.model.logits(row.expand(len(where) + 1, -1), (site, without))
        plain = logits[:1].expand(len(where), -1, -1)
        changes.append(_losses_at(logits[1:], row, where.cpu()) - _losses_at(plain, row, where.cpu()))
    return torch.cat(changes) if changes else torch.empty(0)


def _losses_at(logits: Tensor, row: Tensor, where: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return each row's loss at one position; 0 at the last one."""
    following = torch.cat([row[1:], row[:1]])[where].to(logits.device)
    at = logits[torch.arange(len(where), device=logits.device), where.to(logits.device)].float()
    losses = F.cross_entropy(at, following, reduction="none").cpu()
    return torch.where(where < len(row) - 1, losses, 0.0)


def _labels(store: LatentStore | None, latents: Tensor) -> dict[int, str]:
    if store is None:
        return {}
    labels = store.table["label"].tolist()
    return {each: labels[each] for each in sorted(set(latents.tolist())) if isinstance(labels[each], str)}


def _largest(store: LatentStore | None, latents: Tensor) -> dict[int, float]:
    if store is None:
        return {}
    largest = store.table["max"].tolist()
    # A latent of the prompt may have been off in all data of the store.
    return {each: abs(largest[each]) for each in sorted(set(latents.tolist())) if largest[each]}
