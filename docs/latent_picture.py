"""The picture of a latent's page in the README: python -m docs.latent_picture RUN LATENT. It needs Chromium."""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from fsae.analysis.latent_pages import PAGE
from fsae.outputs.run_folder import RunFolder
from tests.browser.conftest import QUIET, find_program
from tests.browser.page import Page

PICTURE = Path(__file__).parent / "images" / "latent.png"
WIDTH, HEIGHT = 1280, 800
# The page has few colours, and a palette makes the file small.
COLOURS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run with pages of its latents")
    parser.add_argument("latent", type=int)
    options = parser.parse_args()
    program = find_program()
    if program is None:
        raise SystemExit("there is no Chromium; on Debian: apt-get install chromium")
    page = RunFolder(options.run.absolute()).latents / PAGE
    with tempfile.TemporaryDirectory() as profile, Page(program, Path(profile), *QUIET) as browser:
        browser.resize(WIDTH, HEIGHT)
        browser.scheme("light")
        browser.open(f"{page.as_uri()}#latent={options.latent}")
        picture = Image.fromarray(browser.picture())
    picture.quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
