"""The device, dtype and batch size of a language model."""

import torch

from fsae.language_models.settings import Device, DType, ModelSettings

# Tokens per forward pass. More tokens do not make a CPU faster. On a GPU the limit is memory: the logits of one token
# over the largest vocabularies (256,000 in float32, twice if two models are compared) and the activations before them.
_TOKENS_ON_CPU = 1024
_BYTES_PER_TOKEN = 2**22
_MOST_TOKENS = 2**15


def device_of(settings: ModelSettings) -> torch.device:
    """Return the device that the model runs on.

    Raises:
        ValueError: the settings ask for a GPU and there is none.
    """
    if settings.device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but PyTorch sees no GPU on this machine; use auto or cpu")
    if settings.device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device.value)


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """Return the dtype of the weights and activations; `auto` depends on the device."""
    if settings.dtype is not DType.auto:
        return getattr(torch, settings.dtype.value)
    return torch.bfloat16 if _multiplies_in_bfloat16(device_of(settings)) else torch.float32


def rows_at_once(settings: ModelSettings, context: int) -> int:
    """Return the number of sequences of `context` tokens per forward pass.

    It depends on the device's total memory, not on its free memory: rounding depends on this number, and so do the
    activations that jobs on one machine share.
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
