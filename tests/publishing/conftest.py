from pathlib import Path

import pytest

from fsae.language_models.sites import Site
from fsae.outputs.latent_store import LatentStore
from fsae.publishing.source_set import SourceSet
from tests.publishing.finished_runs import runs  # noqa: F401
from tests.publishing.hub import hub  # noqa: F401
from tests.publishing.small_store import write_small_store


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return write_small_store(tmp_path / "latents")


@pytest.fixture
def source() -> SourceSet:
    return SourceSet(
        model="Tiny", name="small-set", site=Site.parse("resid_mid.1"), creator="Someone", creator_id="c123",
        description="three latents", dataset="owner/text", hub_repo="me/sae", hub_folder="blocks.1.hook_resid_mid",
    )  # fmt: skip
