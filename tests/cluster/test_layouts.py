"""Sweeps over layouts, as people start, stop and resume them."""

import signal
from pathlib import Path

from tests.cluster.sweeps import SHORT, is_training, states_in
from tests.processes import begun, ended, finished, start, wait_until

TWO_MODELS = ("layout=crosscoder", "model=[tiny,tiny]", "layout.model.weights=random")
SMALL = ("arch.d_sae=64", "arch.k=8", "source.seed=0", "launcher=packed")


def test_a_sweep_over_crosscoders_of_two_models_is_stopped_resumed_and_reported(tmp_path: Path):
    folder = tmp_path / "sweeps" / "here"
    words = ("-m", *SHORT, *TWO_MODELS, *SMALL, "arch=batch_topk", "seed=1,2", "trainer.samples=150_000")
    process = start(*words, f"hydra.sweep.dir={folder}", outputs=tmp_path)
    wait_until(lambda: is_training(folder / "1"), process)
    process.send_signal(signal.SIGTERM)
    stopped = ended(process)
    assert stopped.returncode == 143, stopped.stdout
    assert "2 jobs in packs of 2" in stopped.stdout
    assert states_in(folder) == {"0": "interrupted", "1": "interrupted"}
    resumed = ended(begun("fsae.resume", str(folder), outputs=tmp_path))
    assert resumed.returncode == 0, resumed.stdout
    assert "resuming at step" in resumed.stdout
    assert states_in(folder) == {"0": "finished", "1": "finished"}
    reported = ended(begun("fsae.report", str(folder), outputs=tmp_path))
    assert reported.returncode == 0, reported.stdout
    assert "fvu_resid_mid.1_of_tiny" in (folder / "report" / "runs.csv").read_text()
    shown = ended(begun("fsae.latents", str(folder / "0"), "--tokens", "2000", outputs=tmp_path))
    assert shown.returncode == 0, shown.stdout
    # Its files alone, with the two models on the command line.
    words = ("model=[tiny,tiny]", "layout.model.weights=random", "debug=tiny", "name=imported")
    shown = ended(begun("fsae.latents", str(folder / "0" / "sae"), *words, "--tokens", "2000", outputs=tmp_path))
    assert shown.returncode == 0, shown.stdout
    assert (next((tmp_path / "runs").glob("eval-imported-*")) / "latents" / "index.html").is_file()


# Layouts of a user, each a packaged one with a change.
TRANSCODER = "# @package _global_\ndefaults: [{}, _self_]\nlayout: {}\n"
OWN_LAYOUTS = {
    "per_layer": TRANSCODER.format("per_layer_transcoder", "{layers: [0, 3]}"),
    "cross_layer": TRANSCODER.format("cross_layer_transcoder", "{layers: [0, 3]}"),
    "low_rank": TRANSCODER.format("skip_transcoder", "{skip_rank: 4}"),
    "partitioned": "defaults: [crosscoder, _self_]\nlayers: [0, 3]\nexclusive: 0.25\n",
}


def test_layouts_are_the_jobs_of_one_pack(tmp_path: Path):
    folder = tmp_path / "sweeps" / "here"
    (tmp_path / "conf" / "layout").mkdir(parents=True)
    for name, text in OWN_LAYOUTS.items():
        (tmp_path / "conf" / "layout" / f"{name}.yaml").write_text(text)
    names = ",".join(["transcoder", "skip_transcoder", "jacobian_pair", *OWN_LAYOUTS])
    words = ("-m", *SHORT, *SMALL, "arch=topk", f"layout={names}", f"--config-dir={tmp_path / 'conf'}")
    swept = finished(*words, f"hydra.sweep.dir={folder}", outputs=tmp_path)
    assert swept.returncode == 0, swept.stdout
    assert "7 jobs in packs of 7" in swept.stdout
    assert states_in(folder) == dict.fromkeys("0123456", "finished")
