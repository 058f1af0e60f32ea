"""The sides of other libraries in the tests in this folder, run with each one's own Python.

release_side.py dictionary_learning X OUT    make and save one dictionary of every class, with its outputs for X
release_side.py sparsify X OUT               the same of every kind of sparse coder
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

D_SAE, K = 40, 4


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Move every parameter off its special starting value."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.abs_()


def dictionary_learning(x: Tensor, out: Path) -> None:
    # It imports nnsight, which brings a torchvision that only fits torch's CUDA builds; nothing here needs it.
    sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    size = (x.shape[1], D_SAE)
    plain = [kind(*size) for kind in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder)]
    selecting = [AutoEncoderTopK(*size, K), BatchTopKSAE(*size, K), MatryoshkaBatchTopKSAE(*size, K, [10, 30])]
    for made in plain + selecting:
        shake(made)
        if isinstance(made, BatchTopKSAE | MatryoshkaBatchTopKSAE):
            made.threshold.fill_(0.6)
        name = type(made).__name__
        folder = out / name
        folder.mkdir()
        torch.save(made.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": x.shape[1], "dict_size": D_SAE, "k": K}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        save_file({"codes": made.encode(x).detach(), "reconstruction": made(x).detach()}, folder / "outputs")


def sparsify(x: Tensor, out: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    kinds = {
        "topk": {},
        "groupmax": {"activation": "groupmax"},
        "transcoder": {"transcode": True},
        "skip_transcoder": {"transcode": True, "skip_connection": True},
        "skip": {"skip_connection": True},
    }
    for name, settings in kinds.items():
        coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=D_SAE, k=K, **settings))
        shake(coder)
        coder.save_to_disk(out / name)
        found = coder(x)
        codes = torch.zeros(len(x), D_SAE).scatter(1, found.latent_indices, found.latent_acts.detach())
        save_file({"codes": codes, "reconstruction": found.sae_out.detach()}, out / name / "outputs")


if __name__ == "__main__":
    library, inputs, folder = sys.argv[1:]
    {"dictionary_learning": dictionary_learning, "sparsify": sparsify}[library](load_file(inputs)["x"], Path(folder))
