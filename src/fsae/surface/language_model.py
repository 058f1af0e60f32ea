"""A language model for Python: text in; activations at a site, logits or generated text out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.configuration.composition import model_settings
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.generation import Sampling, generate
from fsae.language_models.interventions import Intervention
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import Replacement, TransformerLensModel, open_language_model


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

    Within `Dictionary.intervene` its activations, logits and generated text are those of the edited model; `model` is
    never edited.

    Each text is read alone and as the model's own tokenizer begins a text: with a BOS if it puts one there.
    `prepend_bos` decides otherwise.

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
        self._interventions: list[Intervention] = []
        self._others: dict[ModelSettings, TransformerLensModel] = {}

    @cached_property
    def sites(self) -> dict[str, int]:
        return {str(site): width for site, width in self.model.sites.items()}

    def model_at(self, site: Site) -> TransformerLensModel:
        """Return the model that a site is of: `model`, or the other one of a crosscoder, opened on first use.

        Raises:
            ValueError: the other model cannot be opened.
        """
        settings = site.model_in(self.settings)
        if settings == self.settings:
            return self.model
        if settings not in self._others:
            self._others[settings] = open_language_model(settings)
        return self._others[settings]

    def activations(
        self,
        text: str | Sequence[str],
        site: Site | str,
        special_tokens: bool = False,
        prepend_bos: bool | None = None,
    ) -> Activations:
        """Return the activations of a text, or of several, at a site.

        The rows of BOS and other special tokens are left out, as they are from training
        (`dataset.exclude_special_tokens`).

        Args:
            text: one text or several.
            site: such as "resid_mid.4"; `sites` lists them.
            special_tokens: keep the rows of special tokens.
            prepend_bos: whether each text begins with a BOS; None for the tokenizer's own way.

        Raises:
            ValueError: the model does not have the site, a text is longer than the model takes, or no text has a token.
        """
        texts = [text] if isinstance(text, str) else list(text)
        site = Site.parse(site) if isinstance(site, str) else site
        self.model.check_site(site)
        vectors, tokens, numbers = [], [], []
        for number, row in enumerate(self.token_ids(texts, prepend_bos)):
            special = torch.isin(row, torch.tensor(sorted(self.model.special_ids)))
            kept = torch.ones_like(special) if special_tokens else ~special
            if not kept.any():
                continue
            replacements = self._replacements(ForwardPass.over(row[None]))
            read = self.model.activations(row[None], [site], *replacements)[site][0]
            vectors.append(read[kept.to(read.device)])
            tokens.append(row[kept])
            numbers.append(torch.full((int(kept.sum()),), number))
        if not vectors:
            raise ValueError(f"expected text, found {len(texts)} texts without a token that counts")
        ids = torch.cat(tokens)
        return Activations(torch.cat(vectors), ids, self.model.strings(ids.tolist()), torch.cat(numbers))

    @overload
    def logits(self, text: str, prepend_bos: bool | None = None) -> Float[Tensor, "tokens d_vocab"]: ...
    @overload
    def logits(self, text: list[str], prepend_bos: bool | None = None) -> list[Float[Tensor, "tokens d_vocab"]]: ...
    def logits(self, text: str | list[str], prepend_bos: bool | None = None) -> Tensor | list[Tensor]:
        """Return the logits at each token of a text, special tokens included; a list of them for several texts.

        Args:
            text: one text or several.
            prepend_bos: whether each text begins with a BOS; None for the tokenizer's own way.

        Raises:
            ValueError: a text has no token, or is longer than the model takes.
        """
        texts = [text] if isinstance(text, str) else text
        logits = [self.logits_of(row) for row in self.token_ids(texts, prepend_bos)]
        return logits[0] if isinstance(text, str) else logits

    def logits_of(
        self, token_ids: Int[Tensor, " tokens"], prompt: int | None = None
    ) -> Float[Tensor, "tokens d_vocab"]:
        """Return the logits at each token of a row.

        Args:
            token_ids: the row; nothing is put before it.
            prompt: how many of its first tokens are the prompt, and not generated, for the scope of edits; None for
                all.

        Raises:
            ValueError: the row has no token, or is longer than the model takes.
        """
        if not 0 < len(token_ids) <= self.model.context_limit:
            raise ValueError(
                f"a row has {len(token_ids)} tokens; model {self.name} takes 1 to {self.model.context_limit}"
            )
        forward_pass = ForwardPass.over(token_ids[None], prompt)
        return self.model.logits(token_ids[None], *self._replacements(forward_pass))[0]

    @overload
    def generate(
        self,
        prompt: str,
        tokens: int = 50,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        prepend_bos: bool | None = None,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        tokens: int = 50,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        prepend_bos: bool | None = None,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str],
        tokens: int = 50,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        prepend_bos: bool | None = None,
    ) -> str | list[str]:
        """Return the text with which the model continues a prompt; a list of them for several prompts.

        Keys and values of earlier positions are kept from step to step, edited as they were when they were computed.

        Args:
            prompt: one prompt or several. They are continued together, each as if it were alone.
            tokens: the most tokens that are generated; fewer if the model ends its text.
            seed: of the draws.
            temperature: divides the logits; 1 for the model's own distribution, 0 for the likeliest token.
            prepend_bos: whether each prompt begins with a BOS; None for the tokenizer's own way.

        Raises:
            ValueError: a prompt has no token, is too long for the model, or a number is out of its range.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [row.tolist() for row in self.token_ids(prompts, prepend_bos)]
        sampling = Sampling(tokens=tokens, seed=seed, temperature=temperature)
        generated = self.generated_ids(rows, sampling)
        texts = [self.continuation(*each) for each in zip(rows, generated, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def generated_ids(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Return the token ids with which the model continues prompts, without the id that ends a text.

        Args:
            prompts: token ids, at least one each.
            sampling: how many tokens, and how they are drawn.

        Raises:
            ValueError: a prompt has no token, or is too long for the model.
        """
        return generate(self.model, prompts, sampling, self._replacements)

    def continuation(self, prompt: Sequence[int], generated: Sequence[int]) -> str:
        """Return the text of generated ids as it stands after the prompt's."""
        before, whole = self.model.text(prompt), self.model.text([*prompt, *generated])
        # The prompt may end within a character.
        return whole.removeprefix(before) if whole.startswith(before) else self.model.text(generated)

    def token_ids(self, texts: Sequence[str], prepend_bos: bool | None = None) -> list[Int[Tensor, " tokens"]]:
        """Return the token ids of each text.

        Args:
            texts: the texts.
            prepend_bos: whether each text begins with a BOS; None for the tokenizer's own way.

        Raises:
            ValueError: a text is longer than the model takes, or a BOS is asked of a tokenizer that has none.
        """
        model = self.model
        bos = model.bos_id if prepend_bos is None else model.bos_token_id if prepend_bos else None
        if prepend_bos and bos is None:
            raise ValueError(f"prepend_bos is True, but the tokenizer of model {self.name} has no BOS; leave it out")
        rows = []
        for number, ids in enumerate(model.tokenise(texts)):
            row = torch.tensor([*([] if bos is None else [bos]), *ids], dtype=torch.long)
            if len(row) > model.context_limit:
                raise ValueError(
                    f"text {number} has {len(row)} tokens, more than the {model.context_limit} that model "
                    f"{self.name} takes; divide it"
                )
            rows.append(row)
        return rows

    def token_id(self, token: str | int, what: str = "token") -> int:
        """Return the id of a token.

        Args:
            token: its text with its space, as in " Paris", or its id.
            what: names the token in messages.

        Raises:
            ValueError: the text is no token, or several, or the model has no such id.
        """
        if isinstance(token, int):
            if not 0 <= token < self.model.d_vocab:
                raise ValueError(f"{what} is {token}; model {self.name} has the ids 0 to {self.model.d_vocab - 1}")
            return token
        (ids,) = self.model.tokenise([token])
        if len(ids) != 1:
            raise ValueError(
                f"{what} is {token!r}, which is {len(ids)} tokens of model {self.name}: {self.model.strings(ids)}; "
                "give one token, by its text or its id"
            )
        return ids[0]

    @contextmanager
    def intervened(self, intervention: Intervention) -> Iterator[None]:
        """Edit every forward pass within the block; `Dictionary.intervene` makes the intervention.

        Raises:
            ValueError: the model lacks the site, or nothing can be replaced there.
        """
        self.model.check_site(intervention.site)
        self.model.check_splice(intervention.written)
        self._interventions.append(intervention)
        try:
            yield
        finally:
            self._interventions.remove(intervention)

    def _replacements(self, forward_pass: ForwardPass) -> list[Replacement]:
        return [each for intervention in self._interventions for each in intervention.within(forward_pass)]

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
