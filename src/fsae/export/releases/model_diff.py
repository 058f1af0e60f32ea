"""Kissane et al.'s crosscoders of two models: `cc_weights.pt` with `cfg.json` (crosscoder-model-diff-replication)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.settings import count_in
from fsae.export.config_files import read_json
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import check_shapes, read_state_dict, renamed

_CONFIG, _FILE = "cfg.json", "cc_weights.pt"
_NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_FACTORS = "norm_scaling_factors"


def read_model_diff(folder: Path) -> Stored:
    """Return the crosscoder in a folder.

    Its activations are multiplied by one factor per model, which the files do not have.

    Raises:
        ValueError: cfg.json is damaged, or lacks a size or the factors.
    """
    path, weights = folder / _CONFIG, folder / _FILE
    known = read_json(path)
    try:
        d_model, d_sae = count_in(known, "d_in"), count_in(known, "dict_size")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    factors = known.get(_FACTORS)
    if not _are_two_factors(factors):
        raise ValueError(
            f"{path}: {_FACTORS} is {factors!r}; it must be the two numbers by which the activations of the first and "
            "the second model were multiplied in training. The project's notebook has them; add them to the file"
        )
    config: dict[str, Any] = {
        "architecture": "standard_crosscoder",
        "d_in": 2 * d_model,
        "d_out": 2 * d_model,
        "d_sae": d_sae,
        "parts": [["first model", d_model], ["second model", d_model]],
        "apply_b_dec_to_input": False,
        "model_name": known.get("model_name"),
        "hook_name": known.get("hook_point"),
        "context_size": known.get("seq_len"),
    }
    shapes = {
        "W_enc": (2, d_model, d_sae), "W_dec": (d_sae, 2, d_model), "b_enc": (d_sae,), "b_dec": (2, d_model),
    }  # fmt: skip

    def tensors() -> dict[str, Tensor]:
        found = {key: tensor.float() for key, tensor in renamed(read_state_dict(weights), _NAMES, weights).items()}
        check_shapes(found, shapes, _NAMES, weights, path.name)
        scale = torch.tensor(factors)[:, None]
        return {
            "W_enc": (found["W_enc"] * scale[:, :, None]).flatten(0, 1),
            "W_dec": (found["W_dec"] / scale).flatten(1),
            "b_enc": found["b_enc"],
            "b_dec": (found["b_dec"] / scale).flatten(),
        }

    return Stored(config, path, weights, tensors)


def _are_two_factors(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < math.inf for each in value)
    )


MODEL_DIFF = Release(
    "crosscoder-model-diff-replication",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _CONFIG).is_file() and (path / _FILE).is_file(),
    read_model_diff,
)
