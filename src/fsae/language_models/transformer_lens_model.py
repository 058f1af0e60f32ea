"""A language model behind TransformerLens: the only file that knows its names."""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.language_models.device import device_of, dtype_of
from fsae.language_models.embedded import embedded_folder
from fsae.language_models.hub import RepoKind, local_model_folder, offline, require_repo
from fsae.language_models.settings import ModelSettings, Weights
from fsae.language_models.shape import Shape
from fsae.language_models.sites import Site, SiteName

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

_SEPARATOR = "<|endoftext|>"

# A hook's name and what it does with the activations; the name may be a filter, as TransformerLens types it.
_Hook = tuple[str | Callable, Callable]


class _EverySiteRead(Exception):  # noqa: N818 - nothing went wrong
    """Ends a forward pass early: what was asked for has been read."""


class TransformerLensModel:
    """A causal language model: text to token ids, token ids to activations at sites, logits with a site replaced.

    Attributes:
        name: what runs and tables call it.
        shape: layers and widths.
        d_vocab: how many token ids there are.
        context_limit: the longest sequence it takes.
        device, dtype: where its weights are, and their type.
        bos_id: what its own tokenizer puts before a text; None where it puts nothing there.
        bos_token_id: the tokenizer's BOS, whether it puts it before a text or not; None where it has none.
        separator_id: what stands between documents.
        special_ids: every id that stands for no text.
    """

    def __init__(self, bridge: "TransformerBridge", tokenizer: "PreTrainedTokenizerBase", name: str):
        config = bridge.cfg
        self.name = name
        self.shape = Shape(
            num_layers=config.n_layers,
            d_model=config.d_model,
            d_heads=config.n_heads * config.d_head,
            parallel=bool(config.parallel_attn_mlp),
        )
        self.d_vocab: int = config.d_vocab
        self.context_limit: int = config.n_ctx
        weight = next(bridge.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.bos_token_id = tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else None
        self.bos_id = _bos_id(tokenizer)
        self.separator_id = _separator_id(tokenizer, name)
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._bridge = bridge
        self._tokenizer = tokenizer
        # A source may harvest in the background; two passes at a time would run each other's hooks.
        self._one_pass = threading.Lock()

    def width(self, site: Site) -> int:
        """The number of dimensions of the activations at a site."""
        return self.shape.width(site)

    def check_site(self, site: Site) -> None:
        """Make sure that the model has the site.

        Raises:
            ValueError: the layer is beyond the model, or its blocks have no such place.
        """
        self.shape.check_site(site, self.name)
        hooks = self._bridge.hook_dict
        if site.hook_name not in hooks:
            there = [name.value for name in SiteName if Site(name=name, layer=site.layer).hook_name in hooks]
            raise ValueError(
                f"site.name is {site.name.value}, but model {self.name} has no hook {site.hook_name}; "
                f"it has the sites {', '.join(there)}"
            )

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        if not texts:
            return []  # which the tokenizer cannot take
        # `verbose` warns of texts beyond the context limit; packing cuts them into rows.
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]

    def activations(
        self, tokens: Int[Tensor, "sequence position"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "sequence position d"]]:
        """The activations at each site, in the model's dtype and on its device; heads of attn_z are concatenated.

        All rows run in one pass, which stops at the last of the sites: reading resid_mid does not run that block's MLP.

        Raises:
            ValueError: the model does not have the site.
        """
        for site in sites:
            self.check_site(site)
        read = self._read(tokens.to(self.device), sites)
        # Copied outside inference mode, so that training may use the result in an autograd graph.
        return {site: read[site].clone() for site in sites}

    def logits(
        self,
        tokens: Int[Tensor, "sequence position"],
        replace: tuple[Site, Callable[[Float[Tensor, "sequence position d"]], Tensor]] | None = None,
    ) -> Float[Tensor, "sequence position d_vocab"]:
        """The logits of one forward pass, with the activations at a site replaced by a function of them.

        All rows run in one pass: logits are d_vocab wide, so the caller chooses how many rows it can hold.

        Raises:
            ValueError: the model does not have the site.
        """
        hooks: list[_Hook] = []
        if replace is not None:
            site, function = replace
            self.check_site(site)
            hooks = _replacement(site, function)
        with self._one_pass, torch.inference_mode():
            return self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=hooks, use_cache=False)

    def _read(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        read: dict[Site, Tensor] = {}

        def reader(site: Site):
            def keep(activations: Tensor, hook):
                read[site] = activations.flatten(2)
                if len(read) == len(set(sites)):
                    raise _EverySiteRead

            return keep

        hooks: list[_Hook] = [(site.hook_name, reader(site)) for site in set(sites)]
        with self._one_pass, torch.inference_mode():
            try:
                self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, use_cache=False)
            except _EverySiteRead:
                return read
        raise AssertionError(f"hooks that never fired: {[str(site) for site in sites if site not in read]}")


def open_language_model(settings: ModelSettings) -> TransformerLensModel:
    """Open the model that the settings name: a packaged one, a folder, or one on the hub.

    Raises:
        ValueError: package not installed, no such folder, hub unreachable and nothing cached, gated without access,
            unknown name or revision, an architecture TransformerLens does not know, no GPU where one is asked for.
    """
    device, dtype = device_of(settings), dtype_of(settings)
    hub_answers = True
    if settings.package is not None:
        source = str(embedded_folder(settings.package))
    else:
        assert settings.path is not None
        folder = local_model_folder(settings.path)
        source = settings.path if folder is None else str(folder)
        if folder is None:
            hub_answers = require_repo(source, revision=settings.revision, kind=RepoKind.model)

    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    from fsae.language_models.quiet import quiet_transformers

    with quiet_transformers(), nullcontext() if hub_answers else offline():
        try:
            # Our own tokenizer: the one TransformerLens makes puts a BOS before every text, also where the model
            # never saw one in training (SmolLM2).
            tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # of random weights
                bridge = TransformerBridge.boot_transformers(
                    source,
                    device=device.type,
                    dtype=dtype,
                    revision=settings.revision,
                    tokenizer=tokenizer,
                    load_weights=settings.weights is Weights.pretrained,
                )
            if settings.weights is Weights.random:
                # Where it loads weights it does this itself.
                bridge.to(device)
                for name, tensor in [*bridge.named_parameters(), *bridge.named_buffers()]:
                    # Positions' frequencies do not bear rounding.
                    if tensor.is_floating_point() and not name.endswith("inv_freq"):
                        tensor.data = tensor.data.to(dtype)
        except OSError as error:
            raise ValueError(f"model.path: {source} could not be opened as a language model: {error}") from error
    bridge.eval()
    return TransformerLensModel(bridge, tokenizer, settings.name)


def _bos_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The BOS id where the tokenizer itself puts it before a text; SmolLM2 and GPT-2 have one and do not."""
    bos, first = tokenizer.bos_token_id, tokenizer("a")["input_ids"][0]
    return bos if isinstance(bos, int) and bos == first else None


def _separator_id(tokenizer: "PreTrainedTokenizerBase", name: str) -> int:
    """<|endoftext|> where the vocabulary has it (a chat model's EOS ends a turn, not a document), else EOS."""
    separator = tokenizer.convert_tokens_to_ids(_SEPARATOR)
    if isinstance(separator, int) and tokenizer.convert_ids_to_tokens(separator) == _SEPARATOR:
        return separator
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError(
            f"model {name}: its tokenizer has neither {_SEPARATOR} nor an EOS token to put between documents"
        )
    return tokenizer.eos_token_id


def _replacement(site: Site, function: Callable[[Tensor], Tensor]) -> list[_Hook]:
    def edited(activations: Tensor) -> Tensor:
        return function(activations.flatten(2)).to(activations.dtype).reshape(activations.shape)

    if site.name is not SiteName.resid_mid:
        return [(site.hook_name, lambda activations, hook: edited(activations))]

    # The Bridge's resid_mid is only what the MLP reads: the block's skip connection keeps the unedited stream. The
    # same change is added to the block's output, which is where that connection ends.
    changes: list[Tensor] = []

    def edit_what_the_mlp_reads(activations: Tensor, hook) -> Tensor:
        new = edited(activations)
        changes.append(new - activations)
        return new

    def edit_the_skip_connection(activations: Tensor, hook) -> Tensor:
        return activations + changes.pop()

    block_end = Site(name=SiteName.resid_post, layer=site.layer)
    return [(site.hook_name, edit_what_the_mlp_reads), (block_end.hook_name, edit_the_skip_connection)]
