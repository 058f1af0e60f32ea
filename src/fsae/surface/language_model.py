"""A language model for Python: text in, activations at a site out."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.configuration.composition import model_settings
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model


class Activations(NamedTuple):
    """Activations of texts at a site, one row per token.

    Attributes:
        vectors: (tokens, d) raw activations in the model's type and on its device.
        tokens: (tokens,) token ids.
        strings: what each token stands for in the text.
        texts: (tokens,) number of the text that each token is from, counted from 0.
    """

    vectors: Float[Tensor, "tokens d"]
    tokens: Int[Tensor, " tokens"]
    strings: list[str]
    texts: Int[Tensor, " tokens"]


class LanguageModel:
    """A causal language model, opened through TransformerLens.

    Args:
        settings: the origin of its weights and the way to run them.

    Attributes:
        settings: as given.
        name: of the model.
        sites: width of the vectors at each site that the model has, by the site's name, such as "resid_mid.4".
        model: the model itself, for everything that this class does not offer.

    Raises:
        ValueError: the model cannot be opened.
    """

    def __init__(self, settings: ModelSettings):
        self.settings, self.name = settings, settings.name
        self.model: TransformerLensModel = open_language_model(settings)

    @cached_property
    def sites(self) -> dict[str, int]:
        return {str(site): width for site, width in self.model.sites.items()}

    def activations(self, text: str | Sequence[str], site: Site | str, special_tokens: bool = False) -> Activations:
        """Return the activations of a text, or of several, at a site.

        Each text is read alone and as the model's own tokenizer begins a text: with a BOS if it puts one there. The
        rows of BOS and other special tokens are left out, as they are from training
        (`dataset.exclude_special_tokens`).

        Args:
            text: one text or several.
            site: such as "resid_mid.4"; `sites` lists them.
            special_tokens: keep the rows of special tokens.

        Raises:
            ValueError: the model does not have the site, a text is longer than the model takes, or no text has a token.
        """
        texts = [text] if isinstance(text, str) else list(text)
        site = Site.parse(site) if isinstance(site, str) else site
        self.model.check_site(site)
        opening = [] if self.model.bos_id is None else [self.model.bos_id]
        vectors, tokens, numbers = [], [], []
        for number, ids in enumerate(self.model.tokenise(texts)):
            row = torch.tensor([*opening, *ids], dtype=torch.long)
            if len(row) > self.model.context_limit:
                raise ValueError(
                    f"text {number} has {len(row)} tokens, more than the {self.model.context_limit} that model "
                    f"{self.name} takes; divide it"
                )
            special = torch.isin(row, torch.tensor(sorted(self.model.special_ids)))
            kept = torch.ones_like(special) if special_tokens else ~special
            if not kept.any():
                continue
            read = self.model.activations(row[None], [site])[site][0]
            vectors.append(read[kept.to(read.device)])
            tokens.append(row[kept])
            numbers.append(torch.full((int(kept.sum()),), number))
        if not vectors:
            raise ValueError(f"expected text, found {len(texts)} texts without a token that counts")
        ids = torch.cat(tokens)
        return Activations(torch.cat(vectors), ids, self.model.strings(ids.tolist()), torch.cat(numbers))

    def __repr__(self) -> str:
        return f"LanguageModel({self.name}, {self.model.shape.num_layers} layers, {self.model.dtype})"


def language_model(name_or_path: str) -> LanguageModel:
    """Open a language model.

    Args:
        name_or_path: a choice of `model=`, such as "gpt2" or "smollm2_135m_instruct_q4_1", with that choice's settings;
            or a folder in Hugging Face's layout, or a name on its hub.

    Raises:
        ValueError: no such choice, folder or model on the hub, a package that is not installed, an architecture that
            TransformerLens does not know, or damaged files.
    """
    return LanguageModel(model_settings(name_or_path))
