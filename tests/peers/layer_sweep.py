"""A finished sweep of transcoders over all layers of the tiny language model, trained once."""

from pathlib import Path

import pytest

from tests.processes import finished

LAYERS = 4


@pytest.fixture(scope="session")
def layer_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's folder."""
    outputs = tmp_path_factory.mktemp("layer_sweep")
    words = ["debug=tiny", "layout=skip_transcoder", "arch=batch_topk", "arch.d_sae=48", "arch.k=4"]
    words += ["trainer.samples=8192", "source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors]"]
    words += [f"site.layer=range(0,{LAYERS})", "launcher=packed", f"hydra.sweep.dir={outputs / 'sweep'}"]
    done = finished("-m", *words, outputs=outputs)
    assert done.returncode == 0, done.stdout
    return outputs / "sweep"
