"""The dictionary with the fewest bits at an error, by architecture."""

from pathlib import Path

import pytest

from experiments.shortest import bits_at, main, table
from tests.analysis.run_folders import results_of, settings_of, write_run

CURVE = {"bins": [1, 2, 4], "bits": [10.0, 15.0, 20.0], "fvu": [0.5, 0.3, 0.1]}


@pytest.mark.parametrize(("fvu", "bits"), [(0.6, 10.0), (0.3, 15.0), (0.2, 20.0), (0.05, None)])
def test_the_coarsest_bins_with_a_small_enough_error_count(fvu: float, bits: float | None):
    assert bits_at(CURVE, fvu) == bits


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two widths of one architecture: the wider one takes fewer bits, and does not reach so small an error."""
    for latents, factor, worst in ((64, 1.0, 0.0), (128, 0.5, 0.15)):
        curve = CURVE | {
            "bits": [factor * bits for bits in CURVE["bits"]],
            "fvu": [worst + each for each in CURVE["fvu"]],
        }
        results = results_of("gated", 0, 1, 0, effect=0, noise=0) | {"eval/l0": 10.0 / factor, "mdl_curves": curve}
        write_run(tmp_path / str(latents), settings_of("gated", 0, 1, 0, **{"arch.d_sae": latents}), results)
    return tmp_path


def test_width_and_l0_of_the_shortest_codes_depend_on_the_error(runs: Path):
    loose, strict = (table([runs], fvu)[2] for fvu in (0.5, 0.1))
    assert loose.split("|")[3:6] == [" 128 ", " 20.0 ", " 7.5 "]
    assert strict.split("|")[3:6] == [" 64 ", " 10.0 ", " 20.0 "]


def test_an_error_that_no_run_reaches_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(runs), "--fvu", "0.01"])
    assert "none of the 2 runs has an fvu of 0.01 or less" in capsys.readouterr().err


def test_runs_without_the_evaluation_are_refused(tmp_path: Path):
    write_run(tmp_path / "0", settings_of("gated", 0, 1, 0), results_of("gated", 0, 1, 0, effect=0, noise=0))
    with pytest.raises(ValueError, match=r"no run was measured by mdl: .* 'eval=\[vectors,mdl\]'"):
        table([tmp_path], 0.5)
