"""Timed training runs of fsae and of sae_lens on SmolLM2-135M-Instruct (Q4_1), each in its own process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from fsae.sources.documents import DatasetFormat, DatasetSettings, dataset_files

LR = 1e-3
CONTEXT = 128
D_IN = 576


def fsae_run(overrides: Sequence[str], outputs: str, dtype: str = "float32") -> tuple[float, str]:
    """Run `python -m fsae.run` on that model with these overrides; returns its seconds and output.

    Args:
        dtype: the language model's dtype; sae_lens uses float32.

    Raises:
        SystemExit: the run failed.
    """
    common = [
        "model=smollm2_135m_instruct_q4_1",
        "dataset=python_source",
        f"dataset.context={CONTEXT}",
        f"trainer.lr={LR}",
    ]
    common.append(f"model.dtype={dtype}")
    return timed([sys.executable, "-m", "fsae.run", *overrides, *common], {"FSAE_OUTPUTS": outputs})


def sae_lens_run(python: Path, **job: Any) -> tuple[float, str]:
    """Run sae_lens' runner on that model; returns its seconds and last line, with seconds and l0 of the training alone.

    Args:
        python: the interpreter of an environment with sae_lens.
        job: architecture, sparsity (k for topk), site, layer, tokens, batch_size, d_sae, autocast.

    Raises:
        SystemExit: the run failed.
    """
    texts = DatasetSettings(format=DatasetFormat.python_source)
    job |= {
        "model": str(packaged_folder(Package.smollm2_135m_instruct_q4_1)),
        "texts": dataset_files(texts),
        "hook_name": f"blocks.{job['layer']}.hook_{job['site']}",
        "context": CONTEXT,
        "d_in": D_IN,
        "rows": 8,
        "lr": LR,
        "threads": torch.get_num_threads(),
    }
    script = Path(__file__).with_name("sae_lens_training.py")
    seconds, output = timed([str(python), str(script), json.dumps(job)], {"HF_HUB_OFFLINE": "1"})
    return seconds, output.strip().splitlines()[-1]


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    """Run a process; returns its seconds and output, or raises SystemExit with the end of the output if it fails."""
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[:4]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.monotonic() - began, done.stdout
