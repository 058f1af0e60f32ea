import os

import torch

if not torch.cuda.is_available():
    # Read when Triton is imported and when kernels are defined, which is when the tests are collected.
    os.environ["TRITON_INTERPRET"] = "1"
