"""A timed training run of sae_lens' own runner; started by `benchmarks.runs` with sae_lens' Python, never imported.

sae_lens_training.py JSON   with model, texts, architecture, hook_name, tokens, batch_size, context, d_sae, sparsity
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import sys
import time

import datasets
import torch
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from transformer_lens.model_bridge import TransformerBridge

# Batches that sae_lens harvests to measure the scale; its default of 1,000 would exceed the whole training.
BATCHES_FOR_SCALE = 8


def main(job: dict) -> dict[str, float]:
    """Train the job; returns the seconds of the training and the last batch's l0."""
    torch.set_num_threads(job["threads"])
    began = time.monotonic()
    # sae_lens' default class of models does not open a folder; its runner also accepts this one.
    model = TransformerBridge.boot_transformers(job["model"], device="cpu")
    texts = datasets.load_dataset("text", data_files=job["texts"], sample_by="document", split="train", streaming=True)
    common = {"d_in": job["d_in"], "d_sae": job["d_sae"], "normalize_activations": "expected_average_only_in"}
    sae = {
        "standard": lambda: StandardTrainingSAEConfig(**common, l1_coefficient=job["sparsity"]),
        "gated": lambda: GatedTrainingSAEConfig(**common, l1_coefficient=job["sparsity"]),
        "jumprelu": lambda: JumpReLUTrainingSAEConfig(**common, l0_coefficient=job["sparsity"]),
        "topk": lambda: TopKTrainingSAEConfig(**common, k=job["sparsity"]),
    }[job["architecture"]]()
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=job["model"],
        hook_name=job["hook_name"],
        dataset_path="text",
        is_dataset_tokenized=False,
        context_size=job["context"],
        prepend_bos=False,
        sequence_separator_token=0,
        seqpos_slice=(1, None),
        training_tokens=job["tokens"],
        train_batch_size_tokens=job["batch_size"],
        store_batch_size_prompts=job["rows"],
        n_batches_in_buffer=job["batch_size"] * BATCHES_FOR_SCALE // job["context"],
        n_batches_for_norm_estimate=BATCHES_FOR_SCALE,
        lr=job["lr"],
        autocast=job["autocast"],
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )
    runner = LanguageModelSAETrainingRunner(config, override_dataset=texts, override_model=model)
    trained = runner.run()
    seconds = time.monotonic() - began
    with torch.no_grad():
        x = next(iter(runner.activations_store))[:1024]
        l0 = (trained.encode(x) > 0).sum(1).float().mean().item()
    return {"seconds": seconds, "l0": l0}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
