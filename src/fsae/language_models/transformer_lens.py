"""A language model opened by TransformerLens; no other module uses TransformerLens' names."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsae.devices import device_of, dtype_of, warn_if_bfloat16_is_slow
from fsae.language_models.attention import Attention
from fsae.language_models.chat import tokenised_chat
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.hub import RepoKind, local_model_folder, offline, require_repo
from fsae.language_models.mlp import MLP, Affine
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.residual_identities import is_not_sum, unsound_sites
from fsae.language_models.safe_opening import nothing_started
from fsae.language_models.settings import ModelSettings, Weights
from fsae.language_models.shape import Shape
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.unembedding import Unembedding
from fsae.seeds import generator_for

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

_SEPARATOR = "<|endoftext|>"

# Files that a tokenizer can be loaded from.
_TOKENIZER_FILE = re.compile(r"token|vocab|merges|spiece|\.model$|tekken", re.IGNORECASE)

# TransformerLens' kinds of models that fsae cannot use.
_NO_DECODERS = {
    "seq2seq": "its decoder reads an encoder's output",
    "masked_lm": "it fills in masked tokens",
    "audio": "it reads audio",
    "vision": "it reads images",
}

# Tokens of the forward passes that check a model and its sites.
_CHECK_TOKENS = 8

# A site, and a function of the activations there whose result replaces them; None leaves them as they are.
Replacement = tuple[Site, Callable[[Float[Tensor, "sequence position d"]], Tensor | None]]

# A hook's name and a function of the activations; the name may be a filter, as TransformerLens types it.
_Hook = tuple[str | Callable, Callable]


class _EverySiteRead(Exception):  # noqa: N818 - nothing went wrong
    """The early end of a forward pass, once all requested sites have been read."""


class TransformerLensModel:
    """A causal language model: text to token ids, token ids to activations at sites, logits with a site replaced.

    Attributes:
        name: its name in tables and messages.
        shape: layers and widths.
        d_vocab: number of token ids.
        context_limit: the longest sequence that it accepts.
        device, dtype: device and type of its weights.
        bos_id: the id that its tokenizer puts before a text; None if it puts nothing there.
        bos_token_id: the tokenizer's BOS, whether it puts it before a text or not; None if it has none.
        separator_id: the id between documents.
        special_ids: all ids that represent no text.
        end_ids: ids at which generated text ends.
    """

    def __init__(self, bridge: "TransformerBridge", tokenizer: "PreTrainedTokenizerBase", settings: ModelSettings):
        config = bridge.cfg
        self.name = settings.described
        self.shape = Shape(
            num_layers=config.n_layers,
            d_model=config.d_model,
            d_heads=config.n_heads * config.d_head,
            heads=config.n_heads,
            parallel=bool(config.parallel_attn_mlp),
        )
        self.d_vocab: int = config.d_vocab
        self.context_limit: int = config.n_ctx
        if self.context_limit < 1:
            raise ValueError(f"model {self.name}: by its config.json it takes {self.context_limit} tokens; correct it")
        weight = next(bridge.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.bos_token_id = tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else None
        self.bos_id = _bos_id(tokenizer)
        self.separator_id = _separator_id(tokenizer, self.name)
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.end_ids = frozenset({self.separator_id, *_end_ids(bridge, tokenizer)})
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._knows_all_ids = _check_vocabulary(tokenizer, self.d_vocab, settings)
        # A source may harvest in the background; two simultaneous passes would run each other's hooks.
        self._one_pass = threading.Lock()
        self._probe = _probe(self.d_vocab, min(_CHECK_TOKENS, self.context_limit), self.special_ids)
        self._checked: set[Site] = set()
        self._replaceable: set[Site] = set()
        self._failure: str | None = None
        self._widths, self._unsound = self._survey()
        heads = {width for site, width in self._widths.items() if site.name is SiteName.attn_z}
        if len(heads) == 1:
            # The observed width: in some families values and queries differ in width.
            self.shape = replace(self.shape, d_heads=heads.pop())

    @property
    def sites(self) -> dict[Site, int]:
        """The sites that are what their names say, with the width of the activations there."""
        return {site: width for site, width in self._widths.items() if site not in self._unsound}

    def width(self, site: Site) -> int:
        """Return the number of dimensions of the activations at a site, as observed."""
        self.check_site(site)
        if site.head is not None:
            return self._widths[site.of_all_heads] // self._heads
        return self._widths[site]

    @property
    def _heads(self) -> int:
        assert self.shape.heads is not None
        return self.shape.heads

    def check_site(self, site: Site) -> None:
        """Check that the model has the site, and that the site holds what its name means.

        Raises:
            ValueError: the layer is beyond the model, its blocks have no such site, or the activations are others.
        """
        if site in self._checked:
            return
        self.shape.check_site(site, self.name)
        if site.head is not None:
            self.check_site(site.of_all_heads)
            self._checked.add(site)
            return
        reason = self._unsound.get(site)
        if site not in self._widths:
            reason = f"a forward pass does not reach {site.hook_name}"
            if self._failure is not None:
                reason = f"the forward pass fails before it ({self._failure}); model.dtype=float32 may help"
        elif reason is None and site.written is not None:
            reason = self._unsound_input(site, site.written)
        elif reason is None and site.weighted is not None:
            reason = self._unsound_norm(site, site.weighted)
        if reason is not None:
            layer = [Site(name=name, layer=site.layer) for name in SiteName if name is not site.name]
            sound = [each.name.value for each in layer if each in self._widths and each not in self._unsound]
            raise ValueError(
                f"site {site} of model {self.name} does not hold what its name means: {reason}; sound at layer "
                f"{site.layer}: {', '.join(sound) or 'none'}; choose one of them with site=..."
            )
        self._checked.add(site)

    def _unsound_input(self, site: Site, out: Site) -> str | None:
        """Return why a site is not all that attention or an MLP reads; None if it is.

        With zeros there, it must write the same vectors whatever the text is, and the stream before it must not change.
        """
        pre = Site(name=SiteName.resid_pre, layer=site.layer)
        if not {out, pre} <= self.sites.keys():
            return f"{out} and {pre} are needed to check it"
        plain = self._read(self._probe, [pre, out])
        without = self._replacing([(site, torch.zeros_like)])
        zeros, other = (self._read(text, [pre, out], without) for text in (self._probe, self._probe.flip(1)))
        if _differ(zeros[pre], plain[pre]):
            return f"{pre} depends on it"
        if _differ(zeros[out], other[out]):
            return f"{out} depends on other activations too"
        return None if _differ(zeros[out], plain[out]) else f"{out} does not depend on it"

    def _unsound_norm(self, site: Site, weighted: Site) -> str | None:
        """Return why a site is not what a norm makes of the stream before its weight; None if it is.

        Its vectors must have mean squares of 1, except for the norm's epsilon. A weight and a bias for each dimension
        must make of them what the sublayer reads.
        """
        if weighted not in self._widths:
            return f"{weighted} is needed to check it"
        read = self._read(self._probe, [site, weighted])
        normalised, whole = (read[each].double().flatten(0, 1) for each in (site, weighted))
        squares = normalised.square().mean(1)
        if normalised.shape != whole.shape or squares.min() < 0.9 or squares.max() > 1.01:
            return "its vectors are not normalised"
        centred, mean = normalised - normalised.mean(0), whole.mean(0)
        weight = (centred * (whole - mean)).sum(0) / centred.square().sum(0).clamp(min=1e-30)
        fitted = (mean + weight * centred).to(read[weighted].dtype)
        return f"no weight and bias make {weighted} of it" if _differ(fitted, whole.to(fitted)) else None

    def check_splice(self, site: Site) -> None:
        """Check that a replacement at a site takes effect: the activations themselves change no logits, zeros do.

        Raises:
            ValueError: it does not, or the model lacks the site.
        """
        if site in self._replaceable:
            return
        self.check_site(site)
        reason = self._unreplaceable(site)
        if reason is not None:
            raise ValueError(
                f"site {site} of model {self.name} can be read but not replaced ({reason}); set "
                "eval=[vectors], or choose another site or model"
            )
        self._replaceable.add(site)

    def _unreplaceable(self, site: Site) -> str | None:
        """Return why a replacement at a site does not take effect; None if it does."""
        if site.weighted is not None:
            # TransformerLens would compute the norm in another way, which changes last bits everywhere.
            return f"replace {site.weighted} instead, which the norm's weight makes of it"
        if site.name is SiteName.resid_mid:
            end, mlp = (Site(name=name, layer=site.layer) for name in (SiteName.resid_post, SiteName.mlp_out))
            if is_not_sum(self._read_all(self._probe), end, site, mlp):
                return f"a sum carries it past the MLP, and {site} + {mlp} is not {end}"
        try:
            plain = self._logits(self._probe, [])
            same = self._logits(self._probe, self._replacing([(site, lambda activations: activations)]))
            without = self._logits(self._probe, self._replacing([(site, torch.zeros_like)]))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            return f"TransformerLens fails to compute logits: {_one_line(error)}"
        if _differ(same, plain):
            return "the logits change when its activations are replaced by themselves"
        if torch.equal(without, plain):
            return "the logits do not change when its activations are replaced by zeros"
        return None

    @cached_property
    def accepts_padding(self) -> bool:
        """Return whether rows of different lengths can be read in one pass, as observed: padding changes no logits."""
        plain = ForwardPass.over(self._probe)
        padding = self._probe[:, :2]
        tokens = torch.cat([padding, self._probe], dim=1)
        real = torch.cat([torch.zeros_like(padding, dtype=torch.bool), plain.real], dim=1)
        try:
            padded, _ = self.next_logits(ForwardPass(tokens, real, real), None)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return False
        return not _differ(padded, self.next_logits(plain, None)[0])

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        if not texts:
            return []  # the tokenizer does not accept an empty list
        # `verbose` would warn of texts beyond the context limit; packing cuts them into rows anyway.
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        if not self._knows_all_ids and (beyond := max(map(max, filter(None, ids)), default=0)) >= self.d_vocab:
            token = self._tokenizer.convert_ids_to_tokens(beyond)
            raise ValueError(
                f"a text holds the token {token!r}, for which model {self.name} has no embedding; take it "
                "out of the text"
            )
        return ids

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return where each token of `tokenise` begins and ends in its text, in characters.

        Raises:
            ValueError: the tokenizer does not know it.
        """
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of model {self.name} does not report which characters a token is of; choose a model "
                "with a tokenizer.json"
            )
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [[(begin, end) for begin, end in spans] for spans in encoded["offset_mapping"]]

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return what each token stands for in a text; a part of a character becomes a replacement character."""
        strings: list[str] = []
        for token_id in token_ids:
            text, token = self._tokenizer.decode([token_id]), self._tokenizer.convert_ids_to_tokens(token_id)
            assert isinstance(text, str)
            assert isinstance(token, str)
            # SentencePiece's tokenizers drop the space that a text begins with.
            strings.append(f" {text}" if token.startswith("▁") and not text.startswith(" ") else text)
        return strings

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text that tokens stand for together, special tokens included."""
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def tokenise_chat(
        self, messages: Sequence[dict[str, Any]], roles: Sequence[str] | None
    ) -> tuple[list[int], list[bool]]:
        """Return the token ids of a chat in the tokenizer's template, and a mask of the ids that belong to these roles.

        Raises:
            ValueError: the tokenizer has no template.
            UnwritableChat: the template does not write this chat.
        """
        return tokenised_chat(self._tokenizer, messages, roles)

    def activations(
        self, tokens: Int[Tensor, "sequence position"], sites: Sequence[Site], *replacements: Replacement
    ) -> dict[Site, Float[Tensor, "sequence position d"]]:
        """Return the activations at each site, in the model's dtype and on its device; attn_z concatenates its heads.

        All rows run in one pass, which stops at the last site: reading resid_mid does not run that block's MLP.

        Args:
            tokens: the rows.
            sites: the sites to read.
            replacements: what replaces activations, before they are read.

        Raises:
            ValueError: the model lacks a site.
        """
        for site in sites:
            self.check_site(site)
        read = self._read(tokens.to(self.device), sites, self._hooks(replacements))
        # Cloned outside inference mode, so that training may use the result in an autograd graph.
        return {site: read[site].to(self.dtype, copy=True) for site in sites}

    def logits(
        self,
        tokens: Int[Tensor, "sequence position"],
        *replacements: Replacement,
        at: Int[Tensor, " sequence"] | None = None,
    ) -> Float[Tensor, "sequence position d_vocab"]:
        """Return the logits of one forward pass, with the activations at some sites replaced by a function of them.

        All rows run in one pass: logits are d_vocab wide, so the caller chooses how many rows fit. Of two replacements
        at one site, the second gets the result of the first.

        Args:
            tokens: the rows.
            replacements: what replaces the activations at sites.
            at: one position of each row, the only one that gets logits; None for all. In a small model of a large
                vocabulary the unembedding is a fifth of a pass.

        Raises:
            ValueError: the model lacks a site.
        """
        return self._logits(tokens, self._hooks(replacements, at))

    def differentiable_logits(
        self,
        tokens: Int[Tensor, "sequence position"],
        *replacements: Replacement,
        at: Int[Tensor, " sequence"] | None = None,
    ) -> Float[Tensor, "sequence position d_vocab"]:
        """Return what `logits` returns, with a gradient to the tensors that the replacements return.

        Raises:
            ValueError: the model lacks a site.
        """
        hooks = self._hooks(replacements, at)
        with self._one_pass, torch.enable_grad():
            return self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=hooks, use_cache=False)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run the model in float32 within the block; afterwards it has its own weights again, bit for bit.

        Gradients, and the small differences that one latent makes to a logit, are lost in bfloat16's three digits.
        """
        tensors = [*self._bridge.parameters(), *self._bridge.buffers()]
        shorter = [(each, each.data) for each in tensors if each.dtype in (torch.bfloat16, torch.float16)]
        dtype = self.dtype
        try:
            for tensor, data in shorter:
                tensor.data = data.float()
            self.dtype = torch.float32 if shorter else dtype
            yield
        finally:
            for tensor, data in shorter:
                tensor.data = data
            self.dtype = dtype

    def attention(self, tokens: Int[Tensor, "sequence position"], layer: int) -> Attention:
        """Return the attention of a layer: its patterns, and the values of each head.

        Heads that share values, as in grouped-query attention, each have a copy of them.

        Raises:
            ValueError: the model lacks the layer, does not show its patterns or values, or its heads' outputs are not
                its values weighted by its patterns.
        """
        site = Site(name=SiteName.attn_z, layer=layer)
        self.check_site(site)
        pattern_hook, value_hook = (f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v"))
        read: dict[str, Tensor] = {}

        def keep(activations: Tensor, hook) -> None:
            read[hook.name] = activations

        def keep_values(activations: Tensor, hook) -> None:
            read[value_hook] = activations

        hooks: list[_Hook] = [(pattern_hook, keep)] * (pattern_hook in self._bridge.hook_dict)
        hooks += [(value_hook, keep_values)] * (value_hook in self._bridge.hook_dict)
        z = self._read(tokens.to(self.device), [site], hooks)[site]
        missing = {pattern_hook, value_hook} - read.keys()
        if missing:
            raise ValueError(
                f"model {self.name} does not show its attention at layer {layer} ({', '.join(sorted(missing))} has no "
                "activations), so no contribution can be assigned to a head and a position; choose another model"
            )
        pattern = read[pattern_hook].clone()
        heads = pattern.shape[1]
        d_head = z.shape[2] // heads
        values = read[value_hook].flatten(2).unflatten(2, (-1, d_head)).clone()
        found = Attention(pattern, values.repeat_interleave(heads // values.shape[2], dim=2))
        if _differ(found.outputs().flatten(2), z):
            raise ValueError(
                f"at layer {layer} of model {self.name} the heads' outputs are not the values weighted by the "
                "attention pattern, so no contribution can be assigned to a head and a position; choose another model"
            )
        return found

    def next_logits(
        self, forward_pass: ForwardPass, cache: Any, *replacements: Replacement
    ) -> tuple[Float[Tensor, "sequence d_vocab"], Any]:
        """Return the logits of the token after each row, and the cache of all keys and values so far.

        Args:
            forward_pass: rows that end at the same position, with padding at their beginning.
            cache: of the positions before the first that is computed; None if that is 0.
            replacements: what replaces the activations of the positions that are computed.

        Returns:
            Logits, and a cache; None if the model has none, and each pass must compute all positions.

        Raises:
            ValueError: the model lacks a site.
        """
        tokens, first = forward_pass.tokens.to(self.device), forward_pass.first
        settings: dict[str, Any] = {}
        # Some families accept no mask, so only passes that need one have it: with padding, and with a cache,
        # from which transformers would derive it, on some machines as NaN.
        if first or not forward_pass.real.all():
            settings["attention_mask"] = forward_pass.real.long().to(self.device)
        if cache is not None:
            settings["past_key_values"] = cache
        hooks = self._hooks(replacements)
        with self._one_pass, torch.inference_mode():
            logits, cache = self._bridge.run_with_hooks(
                tokens[:, first:],
                fwd_hooks=hooks,
                return_type="logits_and_cache",
                use_cache=self._bridge.adapter.supports_kv_cache,
                **settings,
            )
        return logits[:, -1], cache

    def unembedding(self) -> Unembedding:
        """Return the final norm and the unembedding matrix.

        Raises:
            ValueError: the unembedding does not read the residual stream's width.
        """
        config, norm = self._bridge.cfg, _module(self._bridge, "ln_final")
        W_U = self._bridge.unembed.W_U.detach()
        if W_U.shape[0] != self.shape.d_model:
            raise ValueError(
                f"the unembedding of model {self.name} reads {W_U.shape[0]} dimensions and its residual stream has "
                f"{self.shape.d_model}, so latents have no effects on logits that could be read from the weights"
            )
        # Cohere multiplies its logits, Granite divides them.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        weight, centred = self._observed_norm(norm)
        return Unembedding(W_U, weight, centred, scale)

    def mlp(self, layer: int) -> MLP:
        """Return the MLP of a layer, in float32.

        Raises:
            ValueError: the model lacks the layer, or its MLP is not activation(x W_in) W_out, with or without a gate,
                or another layer follows it.
        """
        read, written = (Site(name=name, layer=layer) for name in (SiteName.mlp_in, SiteName.mlp_out))
        for site in (read, written):
            self.check_site(site)
        part = self._bridge.blocks[layer].mlp
        seen = self._read(self._probe.to(self.device), [read, written])
        try:
            gate = _module(part, "gate")
            found = MLP(
                into=_affine(_module(part, "in")),
                out=_affine(_module(part, "out")),
                activation=_activation(self._bridge.original_model),
                gate=None if gate is None else _affine(gate),
            )
            differs = _differ(found(seen[read].float()), seen[written])
        except (RuntimeError, TypeError, KeyError, AttributeError, StopIteration):
            found, differs = None, True
        if found is None or differs:
            raise ValueError(
                f"what the MLP of layer {layer} of model {self.name} writes is not activation(x W_in) W_out, with or "
                "without a gate, so its Jacobian is not known; choose another model, such as gpt2 or Llama"
            )
        return found

    def into_stream(self, site: Site) -> Float[Tensor, "d d_model"] | None:
        """Return the matrix by which a vector at a site is added to the residual stream; None if no matrix does this.

        It is the identity at sites of the stream itself and at the outputs of attention and MLP. What these read is not
        added to the stream. attn_z goes through its layer's W_O, and in Gemma 2 and others through the weight of a norm
        after it. The stream's own norm at that place divides the result by a root mean square, which differs from
        sample to sample and is left out.

        Raises:
            ValueError: the model lacks the site.
        """
        self.check_site(site)
        if site.written is not None or site.weighted is not None:
            return None
        if site.name is not SiteName.attn_z:
            return torch.eye(self.shape.d_model, device=self.device)
        if site.head is not None:
            matrix = self.into_stream(site.of_all_heads)
            return None if matrix is None else matrix.unflatten(0, (self._heads, -1))[site.head]
        block = self._bridge.blocks[site.layer]
        project, norm = _module(block.attn, "o"), _module(block, "ln1_post")
        attn_out = Site(name=SiteName.attn_out, layer=site.layer)
        if project is None or attn_out not in self.sites:
            return None
        read = self._read(self._probe.to(self.device), [site, attn_out])
        with torch.inference_mode():
            written = project(read[site])
            written = (written if norm is None else norm(written)).double()
            # Granite multiplies what a sublayer writes.
            scale = (written * read[attn_out]).sum() / written.square().sum()
            if _differ(scale * written, read[attn_out]):
                return None
            unit = torch.eye(self.width(site), dtype=self.dtype, device=self.device)
            # Its bias is added to the stream too, but not by the vector.
            W_O = project(unit).float() - project(torch.zeros_like(unit[:1])).float()
        matrix = W_O * scale.float()
        if norm is None:
            return matrix
        weight, centred = self._observed_norm(norm)
        return (matrix - matrix.mean(1, keepdim=True) if centred else matrix) * weight

    def _observed_norm(self, norm: torch.nn.Module | None) -> tuple[Float[Tensor, " d_model"], bool]:
        """Return the factors by which a norm multiplies its normalised input, and whether it subtracts the mean.

        They are observed, because families keep them in different ways: Gemma's factor is 1 + its weight, OLMo's norm
        has no weight.
        """
        ones = torch.ones(self.shape.d_model, dtype=self.dtype, device=self.device)
        if norm is None:
            return ones.float(), False
        assert self.shape.d_model % 2 == 0
        signs = ones.clone()
        signs[1::2] = -1
        # Large inputs, against which a norm's epsilon is nothing. Differences leave out its bias.
        with torch.inference_mode():
            up, down, constant, other_constant = norm(64 * torch.stack([signs, -signs, ones, -ones])).float()
        weight = (up - down) / 2 * signs
        # A norm that subtracts the mean makes every constant vector zero.
        centred = (constant - other_constant).norm() < 1e-2 * weight.norm()
        return weight.float(), bool(centred)

    def _hooks(self, replacements: Sequence[Replacement], at: Int[Tensor, " sequence"] | None = None) -> list[_Hook]:
        for site, _ in replacements:
            self.check_site(site)
        hooks = self._replacing(replacements)
        if at is None:
            return hooks
        rows, places = torch.arange(len(at), device=self.device), at.to(self.device)
        return [*hooks, ("unembed.hook_in", lambda hidden, hook: hidden[rows, places][:, None])]

    def _replacing(self, replacements: Sequence[Replacement]) -> list[_Hook]:
        """Return the hooks of one forward pass that replaces activations.

        In the order of the pass: one at resid_mid also changes the block's end, which a later one at resid_post must
        see.
        """
        ordered = sorted(replacements, key=lambda each: each[0].place)
        return [hook for site, function in ordered for hook in _replacement(site, function, self._heads)]

    def _survey(self) -> tuple[dict[Site, int], dict[Site, str]]:
        """Return the widths of all sites of the model, and the sites that do not hold what their names mean."""
        read = self._read_all(self._probe)
        other_end = self._probe.clone()
        other_end[:, -1] = self._probe[:, 0]
        for site, changed in self._read_all(other_end).items():
            if _differ(changed[:, :-1], read[site][:, :-1]):
                raise ValueError(
                    f"model {self.name} reads later tokens ({site} changes with them), so it is no decoder of text; "
                    "choose a model that predicts the next token, such as gpt2"
                )
        return {site: x.shape[-1] for site, x in read.items()}, unsound_sites(read, self.shape.num_layers)

    def _read_all(self, tokens: Tensor) -> dict[Site, Tensor]:
        """Return the activations at all sites that a forward pass reaches."""
        hooked = self._bridge.hook_dict
        sites = [Site(name=name, layer=layer) for layer in range(self.shape.num_layers) for name in SiteName]
        sites = [site for site in sites if site.hook_name in hooked]
        read: dict[Site, Tensor] = {}

        def reader(site: Site):
            def keep(activations: Tensor, hook):
                # A tensor with fewer dimensions has no positions.
                if activations.dim() > 2:
                    read[site] = activations.flatten(2)
                if len(read) == len(sites):
                    raise _EverySiteRead

            return keep

        with suppress(_EverySiteRead):
            try:
                self._logits(tokens, [(site.hook_name, reader(site)) for site in sites])
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                # It affects only later sites and splices; it is reported when one of them is requested.
                self._failure = f"{type(error).__name__}: {_one_line(error)}"
        return read

    def _logits(self, tokens: Tensor, hooks: list[_Hook]) -> Tensor:
        with self._one_pass, torch.inference_mode():
            return self._bridge.run_with_hooks(tokens.to(self.device), fwd_hooks=hooks, use_cache=False)

    def _read(self, tokens: Tensor, sites: Sequence[Site], before: Sequence[_Hook] = ()) -> dict[Site, Tensor]:
        read: dict[Site, Tensor] = {}

        def reader(site: Site):
            def keep(activations: Tensor, hook):
                read[site] = _at(site, activations.flatten(2), self._heads)
                if len(read) == len(set(sites)):
                    raise _EverySiteRead

            return keep

        hooks: list[_Hook] = [*before, *((site.hook_name, reader(site)) for site in set(sites))]
        with self._one_pass, torch.inference_mode():
            try:
                self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, use_cache=False)
            except _EverySiteRead:
                return read
        raise AssertionError(f"hooks that never fired: {[str(site) for site in sites if site not in read]}")


def open_language_model(settings: ModelSettings) -> TransformerLensModel:
    """Open the model that the settings name: a packaged model, a folder, or a hub repository.

    Opening installs nothing, starts no process, asks no question and runs no code that came with the model. Of a model
    that also takes images only the text part is used.

    Raises:
        ValueError: package not installed, no such folder, hub unreachable and nothing cached, gated without access,
            unknown name or revision, code of its own, an architecture that TransformerLens does not know or that is no
            decoder of text, damaged or missing files, a tokenizer that does not fit, or no GPU although one is asked
            for.
    """
    device, dtype = device_of(settings), dtype_of(settings)
    if dtype is torch.bfloat16:
        name = settings.setting("dtype")
        warn_if_bfloat16_is_slow(f"{name} is bfloat16", f"{name}=float32", device)
    source, hub_answers = _weights_location(settings)
    tokens_from, tokens_revision, tokenizer_answers = _tokenizer_location(settings, source, hub_answers)
    hub_answers = hub_answers and tokenizer_answers

    from fsae.language_models.quiet import quiet_transformers

    # Not within `offline`: some libraries check only at import whether they may use the network.
    _import_text_only()
    with quiet_transformers(), nullcontext() if hub_answers else offline(), nothing_started():
        architecture = _architecture(source, settings)
        tokenizer = _tokenizer(tokens_from, tokens_revision, settings)
        bridge = _bridge(source, architecture, tokenizer, settings, device, dtype)
    bridge.eval()
    # The weights are fixed: gradients reach activations alone.
    bridge.requires_grad_(False)
    return TransformerLensModel(bridge, tokenizer, settings)


def check_same_tokens(settings: ModelSettings, other: ModelSettings) -> None:
    """Check that two models read the same token ids for the same text; their weights are not loaded.

    The text is read by the first model's tokenizer, so the other one may have more tokens.

    Raises:
        ValueError: a token of the first model has another id in the other one, or none.
    """
    from fsae.language_models.quiet import quiet_transformers

    vocabularies = []
    for each in (settings, other):
        source, hub_answers = _weights_location(each)
        tokens_from, revision, tokenizer_answers = _tokenizer_location(each, source, hub_answers)
        with quiet_transformers(), nullcontext() if tokenizer_answers else offline(), nothing_started():
            vocabularies.append(_tokenizer(tokens_from, revision, each).get_vocab())
    first, second = vocabularies
    for token, token_id in sorted(first.items(), key=lambda item: item[1]):
        if second.get(token) != token_id:
            has = f"{second[token]} in {other.described}" if token in second else f"missing in {other.described}"
            raise ValueError(
                f"{settings.described} and {other.described} read different tokens: {token!r} is {token_id} in "
                f"{settings.described} and {has}; choose two models with one tokenizer, such as a base model and one "
                "that was fine-tuned from it, and name the one with more tokens second"
            )


def _weights_location(settings: ModelSettings) -> tuple[str, bool]:
    """Return what transformers opens, and whether it may ask the hub."""
    if settings.package is not None:
        return str(packaged_folder(settings.package, settings.setting("package"))), True
    assert settings.path is not None
    return _located(settings.path, settings.revision, settings.setting("path"))


def _tokenizer_location(settings: ModelSettings, source: str, hub_answers: bool) -> tuple[str, str | None, bool]:
    """Return what transformers opens the tokenizer from, its revision, and whether it may ask the hub."""
    if settings.tokenizer is None:
        return source, settings.revision, hub_answers
    tokens_from, hub_answers = _located(settings.tokenizer, None, settings.setting("tokenizer"))
    return tokens_from, None, hub_answers


def _located(path: str, revision: str | None, setting: str) -> tuple[str, bool]:
    """Return what transformers opens, and whether it may ask the hub."""
    folder = local_model_folder(path, setting)
    if folder is not None:
        return str(folder), True
    return path, require_repo(path, revision=revision, kind=RepoKind.model, setting=setting)


def _import_text_only() -> None:
    """Import TransformerLens without its support for images.

    It would load image processors, install torchvision for them, and refuse models if torchvision is missing; reading
    text needs none of this.
    """
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.sources.transformers import helpers, source

    def nothing(*arguments: object) -> None: ...

    for owner, name, replacement in (
        (helpers, "_ensure_torchvision", lambda: False),
        (source, "load_modality_processor", nothing),
        (ArchitectureAdapter, "_check_required_libraries", nothing),
    ):
        # If TransformerLens renames one of these, the patch must fail instead of silently doing nothing.
        assert hasattr(owner, name), f"TransformerLens no longer has {name}"
        setattr(owner, name, replacement)


def _architecture(source: str, settings: ModelSettings) -> str:
    """Return the architecture that a model's config.json names.

    Raises:
        ValueError: it cannot be read, names code of the model's own, or is no decoder of text that TransformerLens
            knows.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
    from transformer_lens.utilities.architectures import classify_model_config
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    where, revision = f"{settings.setting('path')}: {source}", settings.revision
    with _as_value_error(f"{where}: its config.json cannot be read", "save or download it again"):
        plain, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    kind = plain.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if own := plain.get("auto_map"):
            names = ", ".join(map(str, own.values())) if isinstance(own, dict) else own
            raise ValueError(
                f"{where} runs code of its own ({names}), which is never run here; choose a model that transformers "
                "knows without it"
            )
        raise ValueError(
            f"{where}: its config.json has model_type {kind!r}, which transformers does not know; correct it, or "
            "choose another model"
        )
    no_model = f"{where}: its config.json does not describe a {kind} model"
    with _as_value_error(no_model, "correct the value, or download it again"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    named = ", ".join(getattr(config, "architectures", None) or []) or kind
    what = classify_model_config(config)
    if what not in ("causal_lm", "multimodal"):
        raise ValueError(
            f"{where} is a {named}, which is no decoder of text ({_NO_DECODERS[what]}); choose a model that predicts "
            "the next token, such as gpt2"
        )
    try:
        architecture = determine_architecture_from_hf_config(config)
    except ValueError:
        architecture = None
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{where} is a {named}, an architecture that TransformerLens does not open as a decoder of text; choose a "
            "model of another one, such as gpt2, Llama, Gemma or Qwen"
        )
    return architecture


def _tokenizer(source: str, revision: str | None, settings: ModelSettings) -> "PreTrainedTokenizerBase":
    """Open the model's tokenizer ourselves: TransformerLens' puts a BOS before every text, even if the model never saw
    one in training (SmolLM2)."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    setting = settings.setting("path" if settings.tokenizer is None else "tokenizer")
    another = f"name another model's tokenizer with {settings.setting('tokenizer')}=FOLDER_OR_HUB_NAME"
    if Path(source).is_dir() and not any(_TOKENIZER_FILE.search(file.name) for file in Path(source).iterdir()):
        raise ValueError(f"{setting}: {source} holds no tokenizer (tokenizer.json); {another}")
    # The error that transformers raises for a damaged file does not name the file.
    if (file := Path(source) / "tokenizer.json").is_file():
        with _as_value_error(f"{setting}: {file} is damaged", f"save or download it again, or {another}"):
            Tokenizer.from_file(str(file))
    with _as_value_error(f"{setting}: no tokenizer can be read from {source}", f"repair it, or {another}"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        # Without files transformers may return an empty tokenizer; with damaged ones it fails at the first text.
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ValueError("it makes no tokens of text; its files (tokenizer.json and others) are missing")
    return tokenizer


def _bridge(
    source: str,
    architecture: str,
    tokenizer: "PreTrainedTokenizerBase",
    settings: ModelSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> "TransformerBridge":
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture

    with (
        _as_value_error(
            f"{settings.setting('path')}: {source} could not be opened as a language model",
            "check config.json and the weights in the same folder, or download the model again",
        ),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(settings.weights_seed)  # for random weights
        bridge = TransformerBridge.boot_transformers(
            source,
            device=device.type,
            dtype=dtype,
            revision=settings.revision,
            tokenizer=tokenizer,
            load_weights=settings.weights is not Weights.random,
            model_class=_WholeModels(get_hf_model_class_for_architecture(architecture), settings),
        )
    if settings.weights is Weights.random:
        # TransformerLens does this itself only if it loads weights.
        bridge.to(device)
        for name, tensor in [*bridge.named_parameters(), *bridge.named_buffers()]:
            # The frequencies of positional embeddings must not be rounded.
            if tensor.is_floating_point() and not name.endswith("inv_freq"):
                tensor.data = tensor.data.to(dtype)
    return bridge


class _WholeModels:
    """One of transformers' model classes, restricted to models without code of their own and with all weights; if the
    settings say so, their rows are permuted."""

    def __init__(self, opener: Any, settings: ModelSettings):
        self._opener, self._settings = opener, settings

    def from_config(self, config: Any, **arguments: Any) -> Any:
        return self._opener.from_config(config, **{**arguments, "trust_remote_code": False})

    def from_pretrained(self, source: str, **arguments: Any) -> Any:
        for path in sorted(Path(source).glob("*.safetensors")):
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{path.name} is truncated or damaged: {error}") from error
        ours = {"trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = self._opener.from_pretrained(source, **{**arguments, **ours})
        # transformers would initialise these weights at random and continue.
        for name, there, wanted in sorted(found["mismatched_keys"]):
            raise ValueError(f"the weights' {name} is {tuple(there)}, by config.json it should be {tuple(wanted)}")
        missing = sorted(found["missing_keys"])
        if missing:
            more = f" and {len(missing) - 3} more" if missing[3:] else ""
            raise ValueError(f"the weights lack {', '.join(missing[:3])}{more}")
        if self._settings.weights is Weights.permuted:
            # Before the Bridge copies parts of them.
            _permute_rows(model, self._settings.weights_seed)
        return model


@torch.no_grad()
def _permute_rows(model: torch.nn.Module, seed: int) -> None:
    """Permute the rows of every matrix, each in its own order; a matrix that two parts share stays shared."""
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            order = torch.randperm(weight.shape[-2], generator=generator_for(seed, "rows", name))
            weight.copy_(weight.index_select(-2, order.to(weight.device)))


@contextmanager
def _as_value_error(what: str, remedy: str) -> Iterator[None]:
    """Turn any exception that a library raises about a file from outside into one ValueError with a remedy."""
    try:
        yield
    except Exception as error:
        kind = "" if type(error) is Exception else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{_one_line(error)}); {remedy}") from error


def _module(owner: Any, name: str) -> torch.nn.Module | None:
    """Return the module that a part of the Bridge wraps, without the Bridge's hooks; None if there is none."""
    return getattr(getattr(owner, name, None), "original_component", None)


def _affine(module: Any) -> Affine:
    """Return an affine layer, in float32; GPT-2 keeps matrices the other way round."""
    from transformers.pytorch_utils import Conv1D

    W = module.weight.detach().float()
    W = W if isinstance(module, Conv1D) else W.T
    bias = getattr(module, "bias", None)
    return Affine(W.contiguous(), W.new_zeros(W.shape[1]) if bias is None else bias.detach().float())


def _activation(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the function between the two layers of a model's MLPs, by its config.json."""
    from transformers.activations import ACT2FN

    names = ("hidden_activation", "hidden_act", "activation_function", "act_fn")
    return ACT2FN[next(name for each in names if (name := getattr(model.config, each, None)))]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no details"


def _probe(d_vocab: int, length: int, special_ids: Set[int]) -> Int[Tensor, "1 position"]:
    """Return ids spread over the vocabulary, without those that represent no text (such as an image's position)."""
    ordinary = [token_id for token_id in range(d_vocab) if token_id not in special_ids]
    return torch.tensor([[ordinary[len(ordinary) * (1 + i) // (length + 1)] for i in range(length)]])


def _differ(a: Tensor, b: Tensor) -> bool:
    """Return whether logits differ by more than rounding; values that overflowed are ignored."""
    finite = a.isfinite() & b.isfinite()
    tolerance = max(1e-3, 4 * torch.finfo(b.dtype).eps)
    return bool((a - b)[finite].double().norm() > tolerance * b[finite].double().norm())


def _check_vocabulary(tokenizer: "PreTrainedTokenizerBase", d_vocab: int, settings: ModelSettings) -> bool:
    """Return whether all of a tokenizer's ids are in the model's vocabulary; a few added tokens may not be (Gemma 3).

    Raises:
        ValueError: ids of ordinary tokens are not in it.
    """
    beyond = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id >= d_vocab}
    ordinary = [token for token, token_id in beyond.items() if token_id not in tokenizer.added_tokens_decoder]
    if ordinary:
        raise ValueError(
            f"{settings.setting('path')}: {settings.name} has {d_vocab} token ids, but its tokenizer has "
            f"{len(tokenizer)} tokens ({ordinary[0]!r} is {beyond[ordinary[0]]}): they do not belong together; name "
            f"the model's own tokenizer with {settings.setting('tokenizer')}=FOLDER_OR_HUB_NAME"
        )
    return not beyond


def _bos_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the BOS id if the tokenizer itself puts it before a text; SmolLM2 and GPT-2 have one and do not."""
    bos, first = tokenizer.bos_token_id, tokenizer("a")["input_ids"][0]
    return bos if isinstance(bos, int) and bos == first else None


def _separator_id(tokenizer: "PreTrainedTokenizerBase", name: str) -> int:
    """Return the id of <|endoftext|> if the vocabulary has it (a chat model's EOS ends a turn, not a document), else
    EOS."""
    separator = tokenizer.convert_tokens_to_ids(_SEPARATOR)
    if isinstance(separator, int) and tokenizer.convert_ids_to_tokens(separator) == _SEPARATOR:
        return separator
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError(
            f"model {name}: its tokenizer has neither {_SEPARATOR} nor an EOS token to put between documents"
        )
    return tokenizer.eos_token_id


def _end_ids(bridge: "TransformerBridge", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids at which the model ends a text: the tokenizer's EOS, and those of its settings of generation."""
    settings = getattr(bridge.original_model, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return [token_id for token_id in ids if isinstance(token_id, int)]


def _at(site: Site, activations: Float[Tensor, "row position all"], heads: int) -> Float[Tensor, "row position d"]:
    """Return the activations of a site: those at its hook, or the part of one of the heads."""
    return activations if site.head is None else activations.unflatten(2, (heads, -1))[:, :, site.head]


def _replacement(site: Site, function: Callable[[Tensor], Tensor | None], heads: int) -> list[_Hook]:
    def edited(activations: Tensor) -> Tensor | None:
        flat = activations.flatten(2)
        new = function(_at(site, flat, heads))
        if new is None or site.head is None:
            return None if new is None else new.to(activations.dtype).reshape(activations.shape)
        every_head = flat.clone()
        _at(site, every_head, heads).copy_(new)
        return every_head.reshape(activations.shape)

    if site.name is not SiteName.resid_mid:
        return [(site.hook_name, lambda activations, hook: edited(activations))]

    # The Bridge's resid_mid is only the MLP's input: the block's skip connection keeps the unedited stream. The same
    # change is therefore added to the block's output, where that connection ends.
    changes: list[Tensor | None] = []

    def edit_what_the_mlp_reads(activations: Tensor, hook) -> Tensor | None:
        new = edited(activations)
        changes.append(None if new is None else new - activations)
        return new

    def edit_the_skip_connection(activations: Tensor, hook) -> Tensor | None:
        change = changes.pop()
        return None if change is None else activations + change

    block_end = Site(name=SiteName.resid_post, layer=site.layer)
    return [(site.hook_name, edit_what_the_mlp_reads), (block_end.hook_name, edit_the_skip_connection)]
