"""Which evaluations settings keep."""

from pathlib import Path

import pytest

from fsae.configuration.accept import checked
from tests.composition import composed

TINY = ("model=tiny", "arch=topk", "arch.k=3", "debug=tiny")


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))


def kept(*overrides: str) -> set[str]:
    return set(checked(composed(*TINY, *overrides), list(overrides)).eval)


@pytest.mark.parametrize("site", ["attn_z", "attn_out"])
def test_an_evaluation_of_attention_is_for_sites_of_attention(site: str):
    assert "attention" in kept("eval=suite", f"site={site}", "site.layer=1")
    assert "attention" not in kept("eval=suite", "site=resid_mid", "site.layer=1")
    with pytest.raises(ValueError, match=r"the site is not the output of attention; use site=attn_z or site=attn_out"):
        kept("eval=[attention]", "site=resid_mid", "site.layer=1")
