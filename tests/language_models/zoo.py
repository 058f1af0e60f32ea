"""Small random models of many families, made on the spot, as folders in Hugging Face's layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NUM_LAYERS = 2
D_MODEL = 32
D_VOCAB = 257

# The keys that most families use.
COMMON: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 16}
EXPERTS = {**GROUPED, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
GPT: dict[str, Any] = {
    "n_embd": D_MODEL,
    "n_layer": NUM_LAYERS,
    "n_head": 4,
    "n_inner": 64,
    "vocab_size": D_VOCAB,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# Family -> the name before Config and ForCausalLM in transformers, and the settings of a small model.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 4}),
    "codegen": ("CodeGen", {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", GPT),
    "openai_gpt": ("OpenAIGPT", GPT),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": D_MODEL,
            "num_layers": NUM_LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": D_VOCAB,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoX", COMMON),
    "gpt_neox_sequential": ("GPTNeoX", {**COMMON, "use_parallel_residual": False}),
    "bloom": ("Bloom", {"hidden_size": D_MODEL, "n_layer": NUM_LAYERS, "n_head": 4, "vocab_size": D_VOCAB}),
    "mpt": (
        "Mpt",
        {"d_model": D_MODEL, "n_layers": NUM_LAYERS, "n_heads": 4, "vocab_size": D_VOCAB, "max_seq_len": 128},
    ),
    "falcon": ("Falcon", {**COMMON, "ffn_hidden_size": 64}),
    "falcon_sequential": ("Falcon", {**COMMON, "parallel_attn": False, "ffn_hidden_size": 64}),
    "opt": ("OPT", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": D_MODEL}),
    "opt_postnorm": ("OPT", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": D_MODEL, "do_layer_norm_before": False}),
    "xglm": (
        "XGLM",
        {"d_model": D_MODEL, "ffn_dim": 64, "num_layers": NUM_LAYERS, "attention_heads": 4, "vocab_size": D_VOCAB},
    ),
    "llama": ("Llama", GROUPED),
    "llama_wide_heads": ("Llama", WIDE_HEADS),
    "mistral": ("Mistral", GROUPED),
    "ministral3": ("Ministral3", GROUPED),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4}),
    "gemma": ("Gemma", WIDE_HEADS),
    "gemma2": ("Gemma2", WIDE_HEADS),
    "gemma3": ("Gemma3Text", WIDE_HEADS),
    "vaultgemma": ("VaultGemma", WIDE_HEADS),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3", WIDE_HEADS),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16}),
    "phi": ("Phi", COMMON),
    "phi3": ("Phi3", GROUPED),
    "olmo": ("Olmo", COMMON),
    "olmo2": ("Olmo2", GROUPED),
    "olmo3": ("Olmo3", GROUPED),
    "olmoe": ("Olmoe", EXPERTS),
    "cohere": ("Cohere", GROUPED),
    "cohere2": ("Cohere2", GROUPED),
    "stablelm": ("StableLm", GROUPED),
    "stablelm_parallel": ("StableLm", {**GROUPED, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", GROUPED),
    "granite": ("Granite", {**GROUPED, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "granitemoe": ("GraniteMoe", {**GROUPED, "num_local_experts": 4, "residual_multiplier": 0.5}),
    "glm": ("Glm", WIDE_HEADS),
    "glm4": ("Glm4", WIDE_HEADS),
    "smollm3": ("SmolLM3", GROUPED),
    "nemotron": ("Nemotron", GROUPED),
    "exaone4": ("Exaone4", GROUPED),
    "apertus": ("Apertus", GROUPED),
    "arcee": ("Arcee", GROUPED),
    "seed_oss": ("SeedOss", WIDE_HEADS),
    "ernie4_5": ("Ernie4_5", GROUPED),
    "bitnet": ("BitNet", GROUPED),
    "gpt_oss": ("GptOss", {**WIDE_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
# Exceptions to that naming.
_CLASSES = {
    "GPT2": "GPT2LMHeadModel",
    "OpenAIGPT": "OpenAIGPTLMHeadModel",
    "Gemma3Text": "Gemma3ForCausalLM",
}


def write_decoder(family: str, folder: Path) -> Path:
    """Write a random model of a family with the tiny model's tokenizer; from a fixed seed."""
    import transformers

    stem, settings = DECODERS[family]
    config = getattr(transformers, f"{stem}Config")(**settings)
    return write_model(lambda: getattr(transformers, _CLASSES.get(stem, f"{stem}ForCausalLM"))(config), folder)


def write_model(make: Callable[[], Any], folder: Path, *, tokenizer: bool = True) -> Path:
    """Write what `make` returns, with larger weights, so that layers and tokens differ."""
    from transformers import AutoTokenizer

    from fsae.language_models.packaged import packaged_folder
    from fsae.language_models.quiet import quiet_transformers
    from fsae.language_models.settings import Package

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(8)
                elif weight.dim() == 1:
                    # Gains and biases of norms other than 1 and 0, which make wrong sites visible.
                    weight.add_(0.1 * torch.randn_like(weight))
        model.save_pretrained(folder)
        if tokenizer:
            AutoTokenizer.from_pretrained(packaged_folder(Package.tiny)).save_pretrained(folder)
    return folder


def seeing_models() -> dict[str, Callable[[], Any]]:
    """Models that also see images, by family."""
    import transformers

    # transformers' types do not allow dictionaries as a config's parts.
    t: Any = transformers

    text = {**GROUPED, "head_dim": 8}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    # Ids of an image's positions, which no text has.
    image: dict[str, Any] = {"image_token_id": 256, "vision_start_token_id": 255, "vision_end_token_id": 254}
    mrope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    patches = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": D_MODEL}
    return {
        "gemma3": lambda: t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(
                text_config={**WIDE_HEADS},
                vision_config={**vision},
                mm_tokens_per_image=4,
                image_token_index=256,
                boi_token_index=255,
                eoi_token_index=254,
            )
        ),
        "qwen2_5_vl": lambda: t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": mrope},
                vision_config={**patches, "fullatt_block_indexes": [0]},
                **image,
            )
        ),
        "qwen3_vl": lambda: t.Qwen3VLForConditionalGeneration(
            t.Qwen3VLConfig(
                text_config={**text, "rope_parameters": mrope},
                vision_config={**patches, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
                **image,
            )
        ),
        "llava": lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                text_config=t.LlamaConfig(**GROUPED),
                vision_config=t.CLIPVisionConfig(**vision, projection_dim=16),
                image_token_index=256,
                vision_feature_layer=-1,
            )
        ),
        "mistral3": lambda: t.Mistral3ForConditionalGeneration(
            t.Mistral3Config(
                text_config=t.MistralConfig(**text),
                vision_config=t.PixtralVisionConfig(**{**vision, "head_dim": 16}),
                image_token_index=256,
                vision_feature_layer=-1,
            )
        ),
    }
