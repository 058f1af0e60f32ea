"""The quality of trained autoencoders: fsae in fp32 and bf16 against SAELens, on real activations.

    python -m benchmarks.quality                     # 2M tokens of SmolLM2-135M-Instruct, topk and gated; an hour or so
    python -m benchmarks.quality --tokens 200000 --arch topk

All train on identical batches from identical weights with the same hyper-parameters, one after the other; fvu and l0
are then measured on held-out activations. Activations come from the activation store, which is filled first if it lacks
them, and are passed to each process in files.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.machine import machine_name
from benchmarks.peers.environment import python_of
from benchmarks.peers.fsae_steps import write_weights
from benchmarks.peers.job import Job
from benchmarks.peers.process import Process
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site
from fsae.ranges import COUNT, COUNT_OR_NONE, POSITIVE, argument
from fsae.sources.activations import ActivationSource
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.open_activations import ActivationSourceSettings, Cache
from fsae.sources.source import Request
from fsae.training.scaling import Scale, scale_of

# Weights at which about as many latents are active as the default k.
SPARSITY = {"gated": 1.15, "standard": 1.15, "jumprelu": 1.0}
HELD_OUT = 32_768


def main() -> None:
    """Train everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=argument(int, COUNT), default=2_000_000)
    parser.add_argument("--layer", type=argument(int, COUNT_OR_NONE), default=10)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=4608)
    parser.add_argument("--batch", type=argument(int, COUNT), default=4096)
    parser.add_argument("--k", type=argument(int, COUNT), default=64)
    parser.add_argument("--lr", type=argument(float, POSITIVE), default=1e-3)
    parser.add_argument("--arch", nargs="*", default=["topk", "gated"])
    parser.add_argument("--autocast", action="store_true", help="SAELens in mixed precision as well")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="outputs folder with the activation store"
    )
    options = parser.parse_args()
    print(
        f"{machine_name(options.device)}, {torch.get_num_threads()} threads; "
        f"SmolLM2-135M-Instruct (Q4_1) resid_post.{options.layer}, "
        f"{options.tokens:,} tokens, d_sae {options.d_sae}, batch {options.batch}, lr {options.lr:g}"
    )
    options.outputs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fsae-quality-", dir=options.outputs) as folder:
        with open_source(options) as source:
            job = Job.of_fsae(
                Path(folder),
                d_in=source.d_in,
                d_sae=options.d_sae,
                k=options.k,
                batch=options.batch,
                lr=options.lr,
                device=options.device,
                threads=torch.get_num_threads(),
            )
            first = write_vectors(source, options, job)
        print(f"\n{'':12}{'':20}{'fvu':>10}{'l0':>8}{'fvu differs':>13}{'l0 differs':>12}{'seconds':>9}")
        for architecture in options.arch:
            job = replace(job, architecture=architecture, sparsity=SPARSITY.get(architecture, 0.0))
            write_weights(job, first)
            compare(job, options)


def open_source(options: argparse.Namespace) -> ActivationSource:
    """Return the source of activations, which fills the store if needed."""
    request = Request(
        model=ModelSettings(package=Package.smollm2_135m_instruct_q4_1),
        site=Site.parse(f"resid_post.{options.layer}"),
        dataset=DatasetSettings(format=DatasetFormat.python_source),
        training_samples=options.tokens,
        held_out_samples=HELD_OUT,
        stores=options.outputs / "activations",
    )
    return ActivationSourceSettings(cache=Cache.disk).open(request, lambda: None)


def write_vectors(source: ActivationSource, options: argparse.Namespace, job: Job) -> torch.Tensor:
    """Write all training batches in order and the held-out vectors, scaled; return the first two batches."""
    scale = scale_of(source.first_vectors(), Scale.sqrt_d)
    steps = options.tokens // options.batch
    x = torch.empty(steps * options.batch, source.d_in)
    for begin, batch in zip(range(0, len(x), options.batch), source.batches(options.batch), strict=False):
        torch.mul(batch.inputs, scale, out=x[begin : begin + options.batch])
    save_file({"x": x}, job.vectors)
    held_out_vectors = torch.cat([batch.inputs for batch in source.held_out(HELD_OUT, options.batch)])
    save_file({"x": held_out_vectors * scale}, job.held_out)
    return x[: 2 * options.batch].clone()


def compare(job: Job, options: argparse.Namespace) -> None:
    """Train with SAELens and with fsae, and print a line each."""
    theirs = train(replace(job, library="sae_lens"), options)
    jobs = [replace(job, mode="fp32"), replace(job, mode="bf16")]
    if options.autocast:
        jobs.append(replace(job, library="sae_lens", mode="bf16"))
    for each, found in [(replace(job, library="sae_lens"), theirs), *((each, train(each, options)) for each in jobs)]:
        fvu, l0 = (f"{found[name] / theirs[name] - 1:+.2%}" for name in ("fvu", "l0"))
        name = f"{each.library} {each.mode}"
        print(
            f"{each.architecture:12}{name:20}{found['fvu']:>10.5f}{found['l0']:>8.2f}{fvu:>13}{l0:>12}"
            f"{found['seconds']:>9.0f}",
            flush=True,
        )


def train(job: Job, options: argparse.Namespace) -> dict[str, float]:
    """Return a trained job's measurements and the seconds of its steps."""
    with Process(job, python_of(job.library)) as process:
        began = time.monotonic()
        for _ in range(options.tokens // options.batch):
            process.step()
        return process.measure() | {"seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
