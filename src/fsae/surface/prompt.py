"""A prompt seen by a dictionary: which latents are on at every token, and what they do to the next token's loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fsae.analysis.latent_pages import PromptView
from fsae.language_models.sites import Site
from fsae.outputs.latent_store import LatentStore
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
    activation that the dictionary writes, so that everything else that it does not explain stays. Tokens that training
    left out have no latents.

    Args:
        dictionary: of a language model's activations.
        text: the prompt; it begins with a BOS if the text of the dictionary's training did.
        model: the language model of the dictionary.
        store: of the latents' labels and largest activations, if there is one.
        latents: the most latents per token.
        entries_at_once: logits in memory at once.

    Raises:
        ValueError: the dictionary does not name its site, or reads several, or the text has less than two tokens or too
            many.
    """
    site, written = dictionary.site, dictionary.written_site
    if site is None or written is None:
        raise ValueError(f"{dictionary!r} does not name the site of its vectors, so it cannot read a text")
    if len(dictionary.autoencoder.ends.input.parts) > 1:
        raise ValueError(f"{dictionary!r} reads several sites, and pages of prompts are of dictionaries that read one")
    (row,) = model.token_ids([text], dictionary.provenance.prepend_bos)
    if len(row) < 2:
        raise ValueError(f"the prompt {text!r} has {len(row)} tokens; it needs two, so that one can be predicted")
    activations = model.model.activations(row[None], [site])[site][0]
    codes = dictionary.encode(activations.float())
    left_out = dictionary.left_out(model)
    (counted,) = left_out.counted(row[None], torch.ones_like(row[None], dtype=torch.bool))
    codes[~(counted & left_out.within(activations).cpu()).to(codes.device)] = 0
    strongest = codes.abs().topk(min(latents, dictionary.d_sae), dim=1)
    position, place = strongest.values.nonzero(as_tuple=True)
    latent = strongest.indices[position, place]
    code = codes[position, latent]
    losses = _losses(model.model.logits(row[None])[0], row)
    changes = _changes(dictionary, model, written, row, position, latent, code, entries_at_once)
    found: list[list[tuple[int, float, float | None]]] = [[] for _ in row]
    for where, *numbers, change in zip(*(each.tolist() for each in (position, latent, code, changes)), strict=True):
        # The last token has no next one.
        found[where].append((int(numbers[0]), numbers[1], change if where < len(row) - 1 else None))
    return PromptView(
        tokens=model.model.strings(row.tolist()),
        latents=found,
        losses=[*losses[:-1].tolist(), None],
        labels=_labels(store, latent),
        largest=_largest(store, latent),
    )


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
