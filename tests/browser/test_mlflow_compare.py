"""A sweep's runs in MLflow's pages, which the sweep's links open."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fsae.tracking.mlflow_upload import MlflowUpload, read_description
from fsae.tracking.server import compare_link, create_database, open_client
from fsae.tracking.sweep_summary import SweepRun
from tests.analysis.run_folders import write_sweep
from tests.browser.conftest import Browser
from tests.tracking.mlflow_server import Server

SWEEP = "2026-11-21/14-00-00"
COLOURS = ["#c83243", "#137dae", "#308613", "#de7921"]


@pytest.fixture
def links(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The addresses of the charts and of the table of a sweep of four runs on a server."""
    place = tmp_path / "server"
    place.mkdir()
    create_database(place / "mlflow.db")
    server = Server(place / "mlflow.db", place / "server.log")
    server.start()
    try:
        server.wait_until_up()
        sweep = tmp_path / "sweep"
        write_sweep(sweep, weights=[1.0], seeds=[0], uri=server.uri)
        for folder in sweep.iterdir():
            upload = MlflowUpload(folder, server.uri, read_description(folder))
            upload.send_metrics()
            upload.close()
        store = open_client(server.uri)
        experiment = store.get_experiment_by_name("fsae")
        assert experiment
        # MLflow chooses a colour by a run's random id, and two runs may get the same one.
        for run, colour in zip(store.search_runs([experiment.experiment_id]), COLOURS, strict=True):
            store.set_tag(run.info.run_id, "mlflow.runColor", colour)
        summary = SweepRun(
            uri=server.uri, outputs=tmp_path, experiment="fsae", sweep=SWEEP, varied=["arch", "seed"], seconds=60
        )
        summary.open()
        assert summary.table_link is not None
        assert summary.compare_link is not None
        assert summary.compare_link == compare_link(server.uri, experiment.experiment_id, SWEEP)
        yield summary.compare_link, summary.table_link
    finally:
        server.kill()


# Positions, in pixels, of the list of runs, each with a dot of its own colour, and of the charts.
LIST = (slice(200, 360), slice(320, 370))
CHARTS = (slice(280, 1400), slice(530, 1230))


def pixels(seen: np.ndarray, colour: str) -> int:
    """Return how many pixels of a picture have a colour, or nearly."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(seen.astype(int) - wanted).max(-1) < 6).sum())


def shown(seen: np.ndarray) -> bool:
    """Return whether every run of the sweep is in the list, with its points and lines in the charts."""
    return all(pixels(seen[LIST], colour) > 40 and pixels(seen[CHARTS], colour) > 100 for colour in COLOURS)


def test_the_sweeps_links_show_its_runs_as_charts_and_as_a_table(links: tuple[str, str], browser: Browser):
    link, table = links

    def look() -> np.ndarray:
        return browser.picture(link, "--virtual-time-budget=60000", width=1700, height=1900)

    # The browser's clock runs ahead while it waits for the server, so on a slow machine the page may be incomplete at
    # the end. Loaded files are cached, so the next attempt gets further.
    seen = look()
    for _ in range(4):
        if shown(seen):
            break
        seen = look()
    assert shown(seen), [(pixels(seen[LIST], colour), pixels(seen[CHARTS], colour)) for colour in COLOURS]
    source = browser.source(link, "--window-size=1700,1900", "--virtual-time-budget=60000")
    for name in ("eval/fvu", "eval/l0", "eval/dead_share"):
        assert name in source

    # Held-out numbers are bars: one per run in each chart. Plotly calls a bar a point.
    assert source.count('class="point"') >= 4 * 3
    source = browser.source(table, "--window-size=2400,1200", "--virtual-time-budget=60000")
    # The columns are the varied settings and the main numbers; the sweep's summary run is no row.
    for name in ("arch", "seed", "eval/fvu", "eval/l0", "eval/dead_share"):
        assert f"`{name}`" in source, name
    assert f"sweep {SWEEP}" not in source
