"""A sweep's runs in MLflow's own pages, which the sweep's link opens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fsae.tracking.mlflow_upload import MlflowUpload, read_description
from fsae.tracking.store import compare_link, create_database, open_store
from tests.analysis.run_folders import write_sweep
from tests.browser.conftest import Browser
from tests.tracking.mlflow_server import Server

SWEEP = "2026-11-21/14-00-00"


@pytest.fixture
def link(tmp_path: Path) -> Iterator[str]:
    """The address of the charts of a sweep of four runs, on a server that has them."""
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
        experiment = open_store(server.uri).get_experiment_by_name("fsae")
        assert experiment
        yield compare_link(server.uri, experiment.experiment_id, SWEEP)
    finally:
        server.kill()


def strong(seen: np.ndarray) -> np.ndarray:
    """The pixels of a strong colour."""
    colours = seen.reshape(-1, 3).astype(int)
    return colours[(colours.max(1) - colours.min(1)) > 90]


def test_the_sweeps_link_shows_its_runs_as_charts(link: str, browser: Browser):
    # The browser's clock runs ahead while it waits for the server, so that on a slow machine the page is not done when
    # its time is up. What has been loaded is kept, and the next try gets further.
    for _ in range(5):
        seen = browser.picture(link, "--virtual-time-budget=60000", width=1700, height=1900)
        if len(strong(seen)) / seen[..., 0].size > 0.01:
            break
    # Bars of four runs, each in a colour of its own: a page whose charts are empty has next to none.
    found = strong(seen)
    assert len(found) / seen[..., 0].size > 0.01
    kinds, counts = np.unique(found // 24, axis=0, return_counts=True)
    assert len(kinds[counts > 2000]) >= 4
    source = browser.source(link, "--window-size=1700,1900", "--virtual-time-budget=60000")
    for name in ("fvu", "l0", "dead_share"):
        assert name in source
