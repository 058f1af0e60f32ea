"""Shapes of language models, known before one is loaded, so that a site it does not have is refused at once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.language_models.hub import cached_file, local_model_folder
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model's shape its sites depend on.

    Attributes:
        num_layers: blocks.
        d_model: width of the residual stream.
        d_heads: width of all attention heads together.
        parallel: attention and MLP read the same stream, so that there is no resid_mid between them.
    """

    num_layers: int
    d_model: int
    d_heads: int
    parallel: bool = False

    def width(self, site: Site) -> int:
        """The number of dimensions of the activations at a site."""
        return self.d_heads if site.name is SiteName.attn_z else self.d_model

    def check_site(self, site: Site, model: str) -> None:
        """Make sure that the model has the site.

        Raises:
            ValueError: the layer is beyond the model, or its blocks have no such place.
        """
        if site.layer >= self.num_layers:
            raise ValueError(
                f"site.layer is {site.layer}, but model {model} has {self.num_layers} layers, "
                f"0 to {self.num_layers - 1}; choose one of them"
            )
        if self.parallel and site.name is SiteName.resid_mid:
            others = [name.value for name in SiteName if name is not SiteName.resid_mid]
            raise ValueError(
                f"site.name is resid_mid, but in model {model} attention and MLP read the same stream and there is "
                f"nothing between them; it has the sites {', '.join(others)}"
            )


_PACKAGED = {
    Package.smollm2_135m_instruct_q4_1: Shape(num_layers=30, d_model=576, d_heads=576),
    Package.gemma3_270m_q4_k_m: Shape(num_layers=18, d_model=640, d_heads=1024),
    Package.tiny: Shape(num_layers=4, d_model=32, d_heads=32),
}


def shape_of(settings: ModelSettings) -> Shape | None:
    """A model's shape, from its config.json or a table; None for a hub model that was never downloaded.

    Raises:
        ValueError: `model.path` is neither a model's folder nor a hub name.
    """
    if settings.package is not None:
        return _PACKAGED[settings.package]
    assert settings.path is not None
    folder = local_model_folder(settings.path)
    if folder is not None:
        return _read(folder / "config.json")
    config_json = cached_file(settings.path, "config.json", revision=settings.revision)
    return None if config_json is None else _read(config_json)


def _read(config_json: Path) -> Shape | None:
    config = json.loads(config_json.read_text(encoding="utf-8"))
    # Models that also see images keep their text part one level down.
    config = config.get("text_config", config)

    def first(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    # GPT-2's, GPT-Neo's and everybody else's words.
    num_layers, d_model = first("num_hidden_layers", "n_layer", "num_layers"), first("hidden_size", "n_embd")
    heads = first("num_attention_heads", "n_head", "num_heads")
    if num_layers is None or d_model is None or heads is None:
        return None
    d_heads = heads * config["head_dim"] if config.get("head_dim") else d_model
    # GPT-NeoX (Pythia) is parallel unless its config says otherwise, and saves the flag either way.
    parallel = bool(config.get("use_parallel_residual", config.get("model_type") == "gpt_neox"))
    return Shape(num_layers=num_layers, d_model=d_model, d_heads=d_heads, parallel=parallel)
