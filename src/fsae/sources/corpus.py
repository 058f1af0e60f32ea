"""A corpus: a language model and the text that it reads, each opened on first use."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.devices import rows_at_once
from fsae.language_models.activations import activations_at
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.progress import working
from fsae.sources.documents import DatasetSettings, open_documents
from fsae.sources.shard import Part
from fsae.sources.tokens import Block, PackedTokens, TextRows


class Corpus:
    """The text of a data set in the tokens of a language model.

    Args:
        model_settings: the language model.
        dataset: the documents, and how they become rows of tokens.

    Attributes:
        dataset_name: of the data set, on the hub if it is there.
        labelled: whether documents have labels.
    """

    def __init__(self, model_settings: ModelSettings, dataset: DatasetSettings):
        self._model_settings, self._dataset = model_settings, dataset
        self._others: dict[ModelSettings, TransformerLensModel] = {}
        self.dataset_name = dataset.hub_name or dataset.name
        self.labelled = dataset.label_column is not None

    @cached_property
    def model(self) -> TransformerLensModel:
        """The language model, opened on first use."""
        with working("opening the language model"):
            return open_language_model(self._model_settings)

    def model_at(self, site: Site) -> TransformerLensModel:
        """Return the language model that a site is of, opened on first use."""
        settings = site.model_in(self._model_settings)
        if settings == self._model_settings:
            return self.model
        if settings not in self._others:
            with working("opening the other language model"):
                self._others[settings] = open_language_model(settings)
        return self._others[settings]

    def width(self, site: Site) -> int:
        """Return the number of dimensions of the activations at a site."""
        return self.model_at(site).width(site.within)

    def activations(
        self, tokens: Int[Tensor, "row context"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "row context d"]]:
        """Return the activations at each site, from one forward pass of each model that has one of the sites."""
        return activations_at(self.model_at, tokens, sites)

    @property
    def reopen_models(self) -> Callable[[], Callable[[Site], TransformerLensModel]]:
        """Returns `model_at` of language models that are opened again, in another process."""
        return partial(_models_again, self._model_settings, self._dataset)

    @cached_property
    def prepends_bos(self) -> bool:
        """True if each row of text begins with a BOS; opens the language model."""
        return self.text(Part.held_out).prepends_bos

    def text(self, part: Part) -> PackedTokens:
        """Open one part of the text at its beginning; training text repeats.

        Raises:
            ValueError: the documents cannot be read, or do not suit the language model.
        """
        dataset = self._dataset
        return PackedTokens(
            open_documents(dataset, part),
            self.model,
            rows=rows_at_once(self._model_settings, dataset.tokens_per_row),
            context=dataset.tokens_per_row,
            skip_positions=dataset.skip_positions,
            exclude_special_tokens=dataset.exclude_special_tokens,
            prepend_bos=dataset.prepend_bos,
            repeat=part is Part.train,
            exclude_tokens=dataset.exclude_tokens,
            prefix=dataset.prefix,
            chat_roles=dataset.chat_roles,
        )

    def held_out_positions(self, count: int, heartbeat: Callable[[], None]) -> int:
        """Count the positions of held-out text that an evaluation can use, up to `count`.

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        found = 0
        for block in self.text(Part.held_out):
            found += int(block.keep.sum())
            heartbeat()
            if found >= count:
                break
        return min(found, count)

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """Return the first rows of held-out text that have at least `count` tokens together, or all rows.

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        tokens, keep, _ = self.rows(Part.held_out, count)
        return tokens, keep

    def rows(self, part: Part, count: int, heartbeat: Callable[[], None] = lambda: None) -> TextRows:
        """Return the first rows of a part that have at least `count` tokens together, or all its rows.

        Args:
            heartbeat: called after each block of text; may raise to stop.

        Raises:
            ValueError: the part is empty or shorter than one row.
        """
        text, blocks, found = self.text(part), list[Block](), 0
        for block in text:
            # Training text repeats: what is read a second time is left out.
            if text.epoch > 0 and blocks:
                break
            blocks.append(block)
            found += block.tokens.numel()
            heartbeat()
            if found >= count:
                break
        columns = ([getattr(block, name) for block in blocks] for name in TextRows._fields)
        tokens, keep, documents = (torch.cat(column) for column in columns)
        rows = -(-count // tokens.shape[1])
        return TextRows(tokens[:rows], keep[:rows], documents[:rows])


def _models_again(model: ModelSettings, dataset: DatasetSettings) -> Callable[[Site], TransformerLensModel]:
    return Corpus(model, dataset).model_at
