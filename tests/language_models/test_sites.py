"""Names of sites in fsae and in other libraries."""

import pytest

from fsae.language_models.sites import Site, SiteName


@pytest.mark.parametrize("name", SiteName)
def test_hook_of_a_site_names_it(name: SiteName):
    site = Site(name=name, layer=5)
    assert Site.of_hook(site.hook_name) == site
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.5.ln2.hook_normalized", "mlp_normalized.5"),
        ("blocks.5.ln1.hook_normalized", "attn_normalized.5"),
        ("blocks.5.attn.hook_in", "attn_in.5"),
        ("blocks.5.mlp.hook_in", "mlp_in.5"),
    ],
)
def test_hooks_of_norms_and_sublayers_are_sites(hook: str, site: str):
    assert str(Site.of_hook(hook)) == site


@pytest.mark.parametrize(
    ("hook", "site"), [("blocks.5.hook_mlp_in", "resid_mid.5"), ("blocks.5.hook_attn_in", "resid_pre.5")]
)
def test_copy_of_the_stream_is_read_there_and_not_replaced(hook: str, site: str):
    assert str(Site.of_hook(hook, only_read=True)) == site
    with pytest.raises(ValueError, match=rf"{site} has the same vectors, but its edits reach the whole stream"):
        Site.of_hook(hook)
