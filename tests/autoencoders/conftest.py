import os

import torch

from tests.architectures import one_thread  # noqa: F401 - a fixture that every test here uses

if not torch.cuda.is_available():
    # Read when Triton is imported and when kernels are defined, which is when the tests are collected.
    os.environ["TRITON_INTERPRET"] = "1"
