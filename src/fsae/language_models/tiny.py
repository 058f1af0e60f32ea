"""The tiny model: a random four-layer Llama that reads bytes, the same on every machine, for tests and debug runs."""

import math
from pathlib import Path

NUM_LAYERS = 4
D_MODEL = 32
CONTEXT_LIMIT = 256
# Each message is on its own line after its role, as in "user: hello".
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"


def write_folder(folder: Path) -> None:
    """Write the model (float32, about 40k weights) and its byte tokenizer to `folder`, from a fixed seed."""
    from fsae.language_models.quiet import quiet_transformers

    with quiet_transformers():
        tokenizer = _byte_tokenizer()
        tokenizer.save_pretrained(folder)
        _random_llama(len(tokenizer)).save_pretrained(folder)


def _byte_tokenizer():
    """Return a tokenizer whose id 0 separates documents and whose ids 1 to 256 are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    separator = "<|endoftext|>"
    vocabulary = [separator, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=separator,
        bos_token=separator,
        model_max_length=CONTEXT_LIMIT,
        chat_template=CHAT_TEMPLATE,
    )


def _random_llama(d_vocab: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LIMIT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    # Tensors on the meta device are not initialised, so the run's own random state does not change.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # The usual initialisation (0.02) leaves every layer near the embedding; variance-preserving matrices let
            # attention and MLPs change the stream, so that layers and tokens differ.
            if "embed_tokens" in name:
                weight.normal_(generator=generator)
            elif weight.dim() == 2:
                weight.normal_(std=1 / math.sqrt(weight.shape[1]), generator=generator)
            else:
                weight.fill_(1.0)
    return model
