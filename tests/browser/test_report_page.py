"""The report in a browser: on a laptop and a phone, by day and by night, without a network."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fsae.analysis.figures import COLOURS
from fsae.analysis.report import write_report
from fsae.analysis.runs import collect_folders
from fsae.outputs.status import Failure, RunState
from tests.analysis.run_folders import settings_of, write_run, write_sweep
from tests.browser.conftest import Browser

DARK = "--blink-settings=preferredColorScheme=0"

# Measurements of the page in a frame as wide as a device.
MEASURE = """
<iframe id="device" style="width: %dpx; height: 3000px; border: 0" srcdoc="%s"></iframe><pre id="measured"></pre>
<script>
addEventListener("load", () => {
  const device = document.getElementById("device"), page = device.contentDocument, innerWidth = device.clientWidth;
  const column = name => [...page.querySelectorAll("#runs thead th")].findIndex(each => each.textContent === name);
  const sorted = name => {
    page.querySelectorAll("#runs thead button")[column(name)].click();
    return [...page.querySelectorAll("#runs tbody tr")].map(row => row.cells[column(name)].textContent);
  };
  const visible = each => each.getBoundingClientRect().right <= innerWidth;
  const read = [...page.querySelectorAll("p, li, td, th, figcaption")];
  document.getElementById("measured").textContent = JSON.stringify({
    width: page.documentElement.clientWidth, needed: page.documentElement.scrollWidth,
    broken: [...page.images].filter(each => !each.naturalWidth).length, images: page.images.length,
    narrowest: Math.min(...[...page.images].map(each => each.clientWidth)),
    smallest: Math.min(...read.map(each => parseFloat(getComputedStyle(each).fontSize))),
    up: sorted("l0"), down: sorted("l0"), words: sorted("arch"),
    seen: [...page.querySelectorAll("#runs th")].filter(visible).map(each => each.textContent),
    far: (() => {
      const scroll = page.querySelector("#runs .scroll"), job = page.querySelector("#runs td");
      scroll.scrollLeft = 10000;
      return [scroll.scrollLeft > 0, job.getBoundingClientRect().left - scroll.getBoundingClientRect().left];
    })(),
    verdicts: [...page.querySelectorAll("#matched td.wide")].every(visible),
    tables: [...page.querySelectorAll("table")].every(each => each.closest(".scroll").clientWidth <= innerWidth),
  });
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("sweep")
    write_sweep(sweep, more={"dataset.name": "a_data_set_with_a_long_name"})
    failure = Failure(kind="RuntimeError", message="a long word: " + "x" * 300)
    write_run(sweep / "99", settings_of("gated", 0, 1, 9), None, state=RunState.failed, failure=failure)
    return write_report(collect_folders([sweep]), sweep / "report")


def measured(browser: Browser, page: Path, width: int, tmp_path: Path) -> dict:
    framed = tmp_path / "framed.html"
    framed.write_text("<!doctype html>" + MEASURE % (width, html.escape(page.read_text(encoding="utf-8"))))
    found = re.search(r'<pre id="measured">(.*?)</pre>', browser.source(framed.as_uri(), "--window-size=1500,3000"))
    assert found
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(("width", "narrowest"), [(1400, 480), (390, 300)])
def test_the_report_fits_a_laptop_and_a_phone(width: int, narrowest: int, browser: Browser, page: Path, tmp_path: Path):
    found = measured(browser, page, width, tmp_path)
    assert found["width"] == width
    # Only tables scroll sideways, each within its frame.
    assert found["needed"] == width
    assert found["tables"]
    assert (found["images"], found["broken"]) == (12, 0)
    assert found["narrowest"] >= narrowest
    assert found["smallest"] >= 12


def test_a_phone_shows_the_important_columns_first(browser: Browser, page: Path, tmp_path: Path):
    found = measured(browser, page, 390, tmp_path)
    assert found["seen"][:3] == ["job", "fvu", "l0"]
    assert found["verdicts"]
    # The job stays at the left edge of a scrolled table.
    scrolled, left = found["far"]
    assert scrolled
    assert 0 <= left <= 2


def test_a_click_sorts_the_table_of_runs(browser: Browser, page: Path, tmp_path: Path):
    found = measured(browser, page, 1400, tmp_path)
    # A failed job has no l0 and comes last in either order.
    assert (found["up"][-1], found["down"][-1]) == ("", "")
    numbers = [float(text) for text in found["up"][:-1]]
    assert numbers == sorted(numbers)
    assert [float(text) for text in found["down"][:-1]] == sorted(numbers, reverse=True)
    assert found["words"] == ["gated"] * 41 + ["jumprelu"] * 40


def test_the_report_shows_its_pictures(browser: Browser, page: Path, share_of: Callable[[np.ndarray, str], float]):
    seen = browser.picture(page.as_uri(), width=1400, height=5000)
    assert seen.shape[:2] == (5000, 1400)
    gated, jumprelu, standard = COLOURS[:3]
    # Lines, dots and bars have the colours of the two compared architectures, and no third colour.
    assert share_of(seen, gated) > 2e-4
    assert share_of(seen, jumprelu) > 2e-4
    assert share_of(seen, standard) < share_of(seen, gated) / 5


def test_the_report_is_dark_by_night_and_keeps_its_hues(browser: Browser, page: Path):
    day = browser.picture(page.as_uri(), width=1400, height=5000)
    night = browser.picture(page.as_uri(), DARK, width=1400, height=5000)
    assert day.mean() > 225
    assert night.mean() < 60
    # No picture is bright.
    assert float((night.min(-1) > 200).mean()) < 0.02

    def bluish(seen: np.ndarray) -> np.ndarray:
        colours = seen.astype(int)
        return (colours[..., 2] - colours[..., 0] > 60).mean()

    assert bluish(night) > 0.3 * bluish(day)
