"""Devices: where a model or a source runs, in which dtype, and how many sequences at a time."""

import logging

import torch

from fsae.language_models.settings import Device, DType, ModelSettings

# Tokens per forward pass. A CPU is no faster with more tokens. On a GPU each token is given enough memory for its
# logits over the largest vocabularies (256,000 in float32, twice if two models are compared) and what leads to them.
_TOKENS_ON_CPU = 1024
_BYTES_PER_TOKEN = 2**22
_MOST_TOKENS = 2**15

log = logging.getLogger(__name__)


def any_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(settings: ModelSettings) -> torch.device:
    """Return the device that a language model runs on.

    Raises:
        ValueError: the settings ask for a GPU and there is none.
    """
    if settings.device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but PyTorch sees no GPU on this machine; use auto or cpu")
    if settings.device is Device.auto:
        return any_device()
    return torch.device(settings.device.value)


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """Return the dtype of a language model's weights and activations; the device decides `auto`."""
    if settings.dtype is not DType.auto:
        return getattr(torch, settings.dtype.value)
    return torch.bfloat16 if _multiplies_in_bfloat16(device_of(settings)) else torch.float32


def warn_if_bfloat16_is_slow(setting: str, instead: str, device: torch.device) -> None:
    """Log a warning if a device has to emulate products in bfloat16.

    Args:
        setting: the setting that asks for bfloat16, and its value.
        instead: the same setting with a value that is fast.
        device: computes the products.
    """
    if not _multiplies_in_bfloat16(device):
        log.warning(
            "%s, and this %s has no instructions for products in bfloat16, or none that PyTorch uses: they can take "
            "forty times as long as in float32; try %s",
            setting, "GPU" if device.type == "cuda" else "CPU", instead,
        )  # fmt: skip


def rows_at_once(settings: ModelSettings, context: int) -> int:
    """Return how many sequences of `context` tokens one forward pass takes.

    The number depends on the device's whole memory, not on its free memory: rounding depends on this number, and jobs
    on one machine share activations only if they agree on it.
    """
    if settings.batch_size is not None:
        return settings.batch_size
    device = device_of(settings)
    if device.type == "cpu":
        tokens = _TOKENS_ON_CPU
    else:
        tokens = min(_MOST_TOKENS, torch.cuda.get_device_properties(device).total_memory // _BYTES_PER_TOKEN)
    return max(1, tokens // context)


def _multiplies_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
