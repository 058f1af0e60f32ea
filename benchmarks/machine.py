"""The machine that measurements are made on."""

import platform
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor, its threads and torch's version."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"{machine_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def machine_name(device: str) -> str:
    """Return the name of the processor of a torch device."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
