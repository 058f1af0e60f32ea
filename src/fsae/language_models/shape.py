"""Shapes of language models, read before a model is loaded, so that a site it lacks is refused at once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.language_models.hub import cached_file, local_model_folder
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The parts of a model's shape that its sites depend on.

    Attributes:
        num_layers: number of blocks.
        d_model: width of the residual stream.
        d_heads: total width of all attention heads.
        heads: number of attention heads of a block; None if it is not known yet.
        parallel: attention and MLP read the same stream, so there is no resid_mid between them.
    """

    num_layers: int
    d_model: int
    d_heads: int
    heads: int | None = None
    parallel: bool = False

    def width(self, site: Site) -> int:
        """Return the number of dimensions of the activations at a site."""
        if site.name is not SiteName.attn_z:
            return self.d_model
        if site.head is None:
            return self.d_heads
        assert self.heads is not None, "a model's shape names its heads"
        return self.d_heads // self.heads

    def check_site(self, site: Site, model: str) -> None:
        """Check that the model has the site.

        Raises:
            ValueError: the layer is beyond the model, or its blocks have no such site.
        """
        if site.layer >= self.num_layers:
            raise ValueError(
                f"layer {site.layer} is named, but model {model} has {self.num_layers} layers, 0 to "
                f"{self.num_layers - 1}; choose one of them by site.layer, or several by layout.layers"
            )
        if site.head is not None and self.heads is not None and site.head >= self.heads:
            raise ValueError(
                f"site.head is {site.head}, but the blocks of model {model} have {self.heads} attention heads, 0 to "
                f"{self.heads - 1}; choose one of them"
            )
        if self.parallel and site.name is SiteName.resid_mid:
            others = [name.value for name in SiteName if name is not SiteName.resid_mid]
            raise ValueError(
                f"site.name is resid_mid, but in model {model} attention and MLP read the same stream and there is "
                f"nothing between them; it has the sites {', '.join(others)}"
            )


_PACKAGED = {
    Package.smollm2_135m_instruct_q4_1: Shape(num_layers=30, d_model=576, d_heads=576, heads=9),
    Package.gemma3_270m_q4_k_m: Shape(num_layers=18, d_model=640, d_heads=1024, heads=4),
    Package.tiny: Shape(num_layers=4, d_model=32, d_heads=32, heads=4),
}

# Families whose heads divide the model's width among them; `head_dim` is seldom in their config.json.
_HEADS_SHARE_THE_WIDTH = {
    "gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "codegen", "bloom", "mpt", "falcon", "opt", "xglm", "llama",
    "mistral", "mixtral", "phi", "phi3", "qwen2", "qwen2_moe", "olmo", "olmo2", "olmoe", "cohere", "stablelm",
    "starcoder2", "granite", "granitemoe", "nemotron", "smollm3",
}  # fmt: skip


def shape_of(settings: ModelSettings) -> Shape | None:
    """Return a model's shape, from its config.json or a table; None for a hub model that was never downloaded, or if
    the file does not determine it.

    Raises:
        ValueError: `model.path` is neither a model's folder nor a hub name, its config.json is damaged or has
            impossible sizes, or it is a model with an encoder.
    """
    if settings.package is not None:
        return _PACKAGED[settings.package]
    assert settings.path is not None
    setting = settings.setting("path")
    folder = local_model_folder(settings.path, setting)
    if folder is not None:
        return _read(folder / "config.json", setting)
    config_json = cached_file(settings.path, "config.json", revision=settings.revision)
    return None if config_json is None else _read(config_json, setting)


def _read(config_json: Path, setting: str) -> Shape | None:
    config = _object(config_json, setting)
    if config.get("is_encoder_decoder") is True:
        raise ValueError(
            f"{setting}: {config_json.parent} is a {config.get('model_type')}, whose decoder reads an encoder's "
            "output; choose a model that predicts the next token of text alone, such as gpt2"
        )
    # Models that also take images keep the settings of their text part one level down.
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]

    def first(*keys: str) -> int | None:
        for key in keys:
            value = config.get(key)
            if isinstance(value, list):  # one for each layer
                return None
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(
                        f"{setting}: {config_json}: {key} is {value!r}; it must be a whole number above 0: correct "
                        "it, or save or download the model again"
                    )
                return value
        return None

    # The keys of most families, and of GPT-2, GPT-Neo and MPT.
    num_layers = first("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    d_model = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
    # DeepSeek's values differ in width from its queries.
    head_dim = first("v_head_dim", "head_dim")
    if num_layers is None or d_model is None or heads is None:
        return None
    if head_dim is None and config.get("model_type") not in _HEADS_SHARE_THE_WIDTH:
        # Some families have a default width of their own if config.json omits it.
        return None
    # GPT-NeoX (Pythia) is parallel unless its config denies it; its config may or may not contain the flag.
    parallel = bool(config.get("use_parallel_residual", config.get("model_type") == "gpt_neox"))
    d_heads = d_model if head_dim is None else heads * head_dim
    return Shape(num_layers=num_layers, d_model=d_model, d_heads=d_heads, heads=heads, parallel=parallel)


def _object(path: Path, setting: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    remedy = "save or download the model again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{setting}: {path} is damaged ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{setting}: {path} holds a {type(found).__name__}, but must hold settings by name; {remedy}")
    return found
