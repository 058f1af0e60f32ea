"""Whole training runs on SmolLM2-135M-Instruct (Q4_1) timed: of fsae and of sae_lens, each in another process."""

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


def our_run(overrides: Sequence[str], outputs: str, dtype: str = "float32") -> tuple[float, str]:
    """Return the seconds of `python -m fsae.run` on that model with these overrides, and its output.

    Args:
        dtype: of the language model; sae_lens' is float32.

    Raises:
        SystemExit: it failed.
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
    """Return the seconds of sae_lens' runner on that model, and its last line: seconds and l0 of the training alone.

    Args:
        python: with sae_lens installed.
        job: architecture, sparsity (k for topk), site, layer, tokens, batch_size, d_sae, autocast.

    Raises:
        SystemExit: it failed.
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
    seconds, said = timed([str(python), str(script), json.dumps(job)], {"HF_HUB_OFFLINE": "1"})
    return seconds, said.strip().splitlines()[-1]


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    """Return the seconds of a process and its output.

    Raises:
        SystemExit: the process failed; the message has the end of its output.
    """
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[:4]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.monotonic() - began, done.stdout
