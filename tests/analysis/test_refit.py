"""Least-squares decoders for the codes of trained encoders."""

from pathlib import Path

import pytest
import torch

from experiments.refit import main, solve_decoder
from tests.architectures import build, samples
from tests.processes import finished


@pytest.mark.parametrize("arch", ["abs_topk", "standard"])
def test_refit_gives_the_least_squares_decoder(arch: str):
    autoencoder, x = build(arch, decoder_norm="free").eval(), samples(200)
    codes = autoencoder(x).codes.dense().detach()
    solve_decoder(autoencoder, x, alpha=1e-12)
    assert torch.equal(autoencoder(x).codes.dense() != 0, codes != 0)
    left = x - autoencoder(x).reconstruction.detach()
    assert (codes.T @ left).abs().max() < 1e-6
    assert left.sum(0).abs().max() < 1e-6


def test_refit_prints_both_errors_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    few = ["trainer.samples=900", "trainer.dead_after=900", "suite.batch_size=100", "tracking=none"]
    done = finished("experiment=splines/sgd_mnist_small", "seed=1", f"hydra.sweep.dir={run}", *few, outputs=tmp_path)
    assert done.returncode == 0, done.stdout
    main([str(run), "--lines", "trainer"])
    (cells,) = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert cells[:2] == ["trainer=adam", "1"]
    # Ten steps leave a decoder far from the best.
    assert 0 < float(cells[3]) < 0.7 * float(cells[2])


def test_refit_refuses_other_runs(tmp_path: Path):
    done = finished(
        "experiment=splines/toy",
        "arch=kmeans",
        "seed=1",
        "arch.expansion=3",
        "trainer.samples=1000",
        f"hydra.sweep.dir={tmp_path / 'run'}",
        "tracking=none",
        outputs=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    with pytest.raises(SystemExit, match="is no sparse autoencoder on MNIST"):
        main([str(tmp_path / "run")])
