"""A model's shape, known before it is loaded."""

import json

import pytest

from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.shape import Shape, shape_of
from fsae.language_models.sites import Site, SiteName
from tests.language_models.conftest import opened


@pytest.mark.parametrize(
    "package",
    [
        Package.tiny,
        pytest.param(Package.smollm2_135m_instruct_q4_1, marks=pytest.mark.packaged),
        pytest.param(Package.gemma3_270m_q4_k_m, marks=pytest.mark.packaged),
    ],
)
def test_the_table_of_packaged_shapes_matches_the_models(package):
    assert shape_of(ModelSettings(package=package)) == opened(package).shape


# The keys are those of the models' own config.json files.
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(
            {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12},
            Shape(num_layers=12, d_model=768, d_heads=768, heads=12),
            id="gpt2",
        ),
        pytest.param(
            {"model_type": "gpt_neo", "num_layers": 1, "hidden_size": 1024, "num_heads": 16},
            Shape(num_layers=1, d_model=1024, d_heads=1024, heads=16),
            id="gpt_neo",
        ),
        pytest.param(
            {
                "model_type": "gpt_neox",
                "num_hidden_layers": 6,
                "hidden_size": 512,
                "num_attention_heads": 8,
                "use_parallel_residual": True,
            },
            Shape(num_layers=6, d_model=512, d_heads=512, heads=8, parallel=True),
            id="pythia",
        ),
        pytest.param(
            {"num_hidden_layers": 26, "hidden_size": 2304, "num_attention_heads": 8, "head_dim": 256},
            Shape(num_layers=26, d_model=2304, d_heads=2048, heads=8),
            id="gemma2",
        ),
        pytest.param(
            {"text_config": {"num_hidden_layers": 34, "hidden_size": 2560, "num_attention_heads": 8, "head_dim": 256}},
            Shape(num_layers=34, d_model=2560, d_heads=2048, heads=8),
            id="with_images",
        ),
        pytest.param({"model_type": "something_else"}, None, id="unknown"),
    ],
)
def test_shape_of_reads_config_json(tmp_path, config, shape):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(ModelSettings(path=str(tmp_path))) == shape


def test_shape_of_returns_none_for_a_hub_model_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shape_of(ModelSettings(path="no-such-owner/no-such-model")) is None


def test_widths():
    shape = Shape(num_layers=1, d_model=640, d_heads=1024, heads=4)
    assert shape.width(Site(name=SiteName.attn_z, layer=0, head=3)) == 256
    widths = {name: shape.width(Site(name=name, layer=0)) for name in SiteName}
    assert widths.pop(SiteName.attn_z) == 1024
    assert set(widths.values()) == {640}


def test_check_site_refuses_missing_sites():
    parallel = Shape(num_layers=2, d_model=8, d_heads=8, parallel=True)
    parallel.check_site(Site(name=SiteName.resid_pre, layer=1), "it")
    with pytest.raises(ValueError, match=r"layer 2 is named, but model it has 2 layers, 0 to 1"):
        parallel.check_site(Site(name=SiteName.resid_pre, layer=2), "it")
    with pytest.raises(ValueError, match=r"site.name is resid_mid, but in model it .* mlp_out"):
        parallel.check_site(Site(name=SiteName.resid_mid, layer=0), "it")


def test_check_site_refuses_a_head_beyond_the_last():
    shape = Shape(num_layers=2, d_model=8, d_heads=8, heads=4)
    shape.check_site(Site(name=SiteName.attn_z, layer=1, head=3), "it")
    with pytest.raises(ValueError, match=r"site.head is 4, but the blocks of model it have 4 attention heads, 0 to 3"):
        shape.check_site(Site(name=SiteName.attn_z, layer=1, head=4), "it")


def test_shape_of_refuses_folders_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json"):
        shape_of(ModelSettings(path=str(tmp_path)))
    for path in (str(tmp_path / "missing"), "./missing", "a/b/c"):
        with pytest.raises(ValueError, match=r"is no folder on this machine .* and no hub name"):
            shape_of(ModelSettings(path=path))
