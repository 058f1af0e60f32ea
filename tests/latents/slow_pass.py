"""A pass of one worker that takes minutes; prints a line when the worker has begun to read."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fsae.latents.contexts import Contexts, Read, SampleContexts
from fsae.latents.hits import HitSizes
from fsae.latents.latent_pass import Sizes
from fsae.latents.unfinished import Unfinished
from fsae.latents.workers import Share, work
from tests.architectures import build


class SlowContexts(SampleContexts):
    def read(self, begin: int, end: int) -> Read:
        time.sleep(0.05)
        return super().read(begin, end)

    def reopened(self) -> Callable[[], Contexts]:
        return partial(SlowContexts, self.vectors, 1)


def main() -> None:
    contexts = SlowContexts(torch.randn(5000, 4), 1)
    autoencoder = build("topk", d_in=4, seed=0, dtype=torch.float32).eval()
    survey = Sizes(HitSizes(2, 1, 2, 0), 2, 0).survey(autoencoder)

    def show(positions: int) -> None:
        if positions:
            print("read", flush=True)

    with TemporaryDirectory() as folder:
        kept = Unfinished(Path(folder), "key")
        share = Share("worker-0", [0], contexts.reopened(), [[autoencoder]], [[survey]], [kept], 1)
        work([share], lambda: None, show)


if __name__ == "__main__":
    main()
