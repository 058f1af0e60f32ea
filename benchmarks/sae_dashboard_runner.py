"""SAEDashboard's runner for Neuronpedia; started by `benchmarks.dashboards` with its Python, never imported.

sae_dashboard_runner.py JSON   with the job that `benchmarks.dashboards.their_dashboards` writes
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

BEGAN = time.monotonic()

import torch  # noqa: E402

# It is installed for nnsight, and only fits torch's CUDA builds; nothing here needs it.
sys.modules["torchvision"] = None

from sae_dashboard.neuronpedia import neuronpedia_runner  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_runner import NeuronpediaRunner  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig  # noqa: E402
from sae_lens import HookedSAETransformer  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402
from transformer_lens.pretrained.weight_conversions import convert_llama_weights  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402


def main(job: dict) -> dict:
    """Make the dashboards of the first batches of latents, and return wall and CPU seconds.

    The runner reads the language model in its first batch, and its own files of the activations in all others.

    Args:
        job: `batches` has the number of batches by their size, and `ours` the batch files that fsae has written.

    Returns:
        The seconds from the start of the process to the first batch, and those of each batch by the batches' size.
    """
    torch.set_num_threads(job["threads"])
    # The runner writes its files of activations below the working directory.
    os.chdir(job["folder"])
    model = language_model(Path(job["model"]), job["context"])
    HookedSAETransformer.from_pretrained = lambda *_, **__: model
    clock = Clock()
    # The loop over the batches of latents is the one loop that has a progress bar here.
    neuronpedia_runner.tqdm = clock.stamped
    opening, batches = None, {}
    for size, count in job["batches"]:
        # All settings that are not named here are the defaults.
        config = NeuronpediaRunnerConfig(
            sae_set="benchmark",
            sae_path=job["sae"],
            np_set_name="benchmark",
            from_local_sae=True,
            huggingface_dataset_path=job["dataset"],
            outputs_dir=f"theirs/{size}",
            n_prompts_total=job["prompts"],
            n_tokens_in_prompt=job["context"],
            n_features_at_a_time=size,
            ignore_positions=list(range(job["skip"])),
            end_batch=count - 1,
            sae_dtype="float32",
            model_dtype="float32",
        )
        runner = NeuronpediaRunner(config)
        shutil.copy(job["tokens"], Path(config.outputs_dir) / f"tokens_{job['prompts']}.pt")
        opening = opening or (time.monotonic() - BEGAN, time.process_time())
        clock.turns.clear()
        runner.run()
        batches[size] = clock.turns[:count]
    for path in job["ours"]:
        check(json.loads(Path(path).read_text()))
    return {"opening": opening, "batches": batches}


class Clock:
    """Wall and CPU seconds of the turns of a loop."""

    def __init__(self):
        self.turns: list[tuple[float, float]] = []

    def stamped(self, turns: Iterable) -> Iterator:
        for turn in turns:
            wall, cpu = time.monotonic(), time.process_time()
            yield turn
            self.turns.append((time.monotonic() - wall, time.process_time() - cpu))


def language_model(folder: Path, context: int) -> HookedSAETransformer:
    """Return a Llama of a local folder as `from_pretrained` would, which opens only models of names that it knows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The runner leaves out BOS, EOS and padding. Padding is made the separator of documents, which fsae leaves out.
    # With `add_bos_token`, transformer-lens does not open the tokenizer again, by its class of a newer release.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>", add_bos_token=True)
    theirs = model.config
    config = HookedTransformerConfig(
        model_name=folder.name,
        original_architecture="LlamaForCausalLM",
        device="cpu",
        dtype=torch.float32,
        d_model=theirs.hidden_size,
        d_head=theirs.head_dim,
        n_heads=theirs.num_attention_heads,
        n_key_value_heads=theirs.num_key_value_heads,
        d_mlp=theirs.intermediate_size,
        n_layers=theirs.num_hidden_layers,
        n_ctx=context,
        eps=theirs.rms_norm_eps,
        d_vocab=theirs.vocab_size,
        act_fn=theirs.hidden_act,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=theirs.head_dim,
        # transformers before 5 does not read this entry of newer folders.
        rotary_base=theirs.rope_parameters["rope_theta"],
        final_rms=True,
        gated_mlp=True,
        init_weights=False,
    )
    hooked = HookedSAETransformer(config, tokenizer=tokenizer, move_to_device=False)
    # What `from_pretrained` does by default for a model with RMS norms.
    hooked.load_and_process_state_dict(
        convert_llama_weights(model, config), fold_ln=True, center_writing_weights=False, center_unembed=True
    )
    return hooked.eval()


def check(batch: dict) -> None:
    """Raise an exception if SAEDashboard's classes lose or add an entry of a batch file."""
    opened = NeuronpediaDashboardBatch(**batch).to_dict()
    assert opened == batch, f"SAEDashboard's classes change the batch of latent {batch['features'][0]['feature_index']}"


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]))
    print(json.dumps(answer))
