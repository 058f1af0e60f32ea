"""Conversion of a GGUF file to an ordinary Hugging Face folder with dense float32 weights."""

import copy
from pathlib import Path


def write_folder(gguf: Path, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` (float32) and the tokenizer of a .gguf file to `folder`.

    The quantised weights are expanded; nothing else about them changes.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from fsae.language_models.quiet import quiet_transformers

    with quiet_transformers():
        # Without `dequantize` the weights stay packed if the `kernels` package is installed.
        packed = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        # transformers marks the model as quantised and refuses to save it, so an unmarked copy takes over its weights.
        config = copy.deepcopy(packed.config)
        config.architectures = [type(packed).__name__]
        with torch.device("meta"):
            model = type(packed)(config)
        model.load_state_dict(packed.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
