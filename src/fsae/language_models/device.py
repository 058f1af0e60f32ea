"""The device a language model runs on, and how: in which type, and how many sequences at a time."""

import torch

from fsae.language_models.settings import Device, DType, ModelSettings

# Tokens of a forward pass. A CPU is no faster with more of them; on a GPU, memory for one token's logits over the
# largest vocabularies (256,000 in float32, twice when two models are compared) and for all that leads to them.
_TOKENS_ON_CPU = 1024
_BYTES_A_TOKEN = 2**22
_MOST_TOKENS = 2**15


def device_of(settings: ModelSettings) -> torch.device:
    """Where the model runs.

    Raises:
        ValueError: no GPU where one is asked for.
    """
    if settings.device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but PyTorch sees no GPU on this machine; use auto or cpu")
    if settings.device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device.value)


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """The type of the weights and activations; `auto` is decided by the device."""
    if settings.dtype is not DType.auto:
        return getattr(torch, settings.dtype.value)
    return torch.bfloat16 if _multiplies_in_bfloat16(device_of(settings)) else torch.float32


def rows_at_once(settings: ModelSettings, context: int) -> int:
    """Sequences of `context` tokens in a forward pass.

    By the device's whole memory, not by what is free of it: rounding depends on this number, and so does what jobs on
    one machine share.
    """
    if settings.batch_size is not None:
        return settings.batch_size
    device = device_of(settings)
    if device.type == "cpu":
        tokens = _TOKENS_ON_CPU
    else:
        tokens = min(_MOST_TOKENS, torch.cuda.get_device_properties(device).total_memory // _BYTES_A_TOKEN)
    return max(1, tokens // context)


def _multiplies_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
