"""circuit-tracer's folder; `tests/peers/test_circuit_tracer.py` opens it with circuit-tracer's own loader."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fsae.autoencoders.layout import Ends, Layout
from fsae.export.dictionary_files import load_autoencoder, read_provenance
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.publishing.circuit_tracer import write_circuit_tracer
from tests.architectures import relative_error, samples
from tests.autoencoders.test_layout import moved

TRANSCODER = Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(5, "mlp_out.0"))
SKIP = replace(TRANSCODER, skip=True)


def saved(folder: Path, layer: int, arch: str = "jumprelu", ends: Ends = TRANSCODER, **changes: str) -> Path:
    """Return the folder of a transcoder of a layer, with weights of its own."""
    names = {"hook_name": "mlp.hook_in", "hook_name_out": "hook_mlp_out"} | changes
    hooks: dict[str, Any] = {name: f"blocks.{layer}.{hook}" for name, hook in names.items()}
    autoencoder = moved(arch, ends).float().eval()
    with torch.no_grad():
        autoencoder.b_dec += layer
    save_saelens(autoencoder, folder, Provenance(model_name="tiny", **hooks))
    return folder


@pytest.mark.parametrize("ends", [TRANSCODER, SKIP], ids=["transcoder", "skip"])
@pytest.mark.parametrize("arch", ["standard", "jumprelu", "batch_topk"])
def test_every_layer_is_written_and_read_back(tmp_path: Path, arch: str, ends: Ends):
    folders = [saved(tmp_path / str(layer), layer, arch, ends) for layer in (1, 0)]
    assert write_circuit_tracer(folders, tmp_path / "set") == 2
    assert yaml.safe_load((tmp_path / "set" / "config.yaml").read_text()) == {
        "model_kind": "transcoder_set",
        "model_name": "tiny",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "set",
    }
    x = samples(60, 5, dtype=torch.float32)
    for layer, folder in zip((1, 0), folders, strict=True):
        path = tmp_path / "set" / f"layer_{layer}.safetensors"
        wanted, found = load_autoencoder(folder)(x), load_autoencoder(path)(x)
        assert relative_error(found.codes.dense(), wanted.codes.dense()) < 1e-6
        assert relative_error(found.reconstruction, wanted.reconstruction) < 1e-6
        assert read_provenance(path) == read_provenance(folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
        assert shapes == {
            "W_enc": (13, 5),
            "W_dec": (13, 5),
            "b_enc": (13,),
            "b_dec": (5,),
            **({"activation_function.threshold": (13,)} if arch != "standard" else {}),
            **({"W_skip": (5, 5)} if ends.skip else {}),
        }


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path):
    first, second = saved(tmp_path / "a", 0), saved(tmp_path / "b", 0, "standard")
    for folder in (first, second):
        write_circuit_tracer([folder], tmp_path / "set")
    assert "activation_function.threshold" not in load_file(tmp_path / "set" / "layer_0.safetensors")
    with pytest.raises(ValueError, match="is no such export"):
        write_circuit_tracer([first], first)


def refused(tmp_path: Path, *folders: Path) -> str:
    with pytest.raises(ValueError) as raised:
        write_circuit_tracer(folders, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    return str(raised.value)


@pytest.mark.parametrize("arch", ["topk", "gated", "lista"])
def test_codes_of_another_kind_are_refused(tmp_path: Path, arch: str):
    message = refused(tmp_path, saved(tmp_path / "sae", 0, arch))
    assert f"has a {arch}_transcoder, and circuit-tracer takes transcoders whose codes are those of ReLU" in message


@pytest.mark.parametrize(
    ("hook", "hook_out", "sites"),
    [
        ("mlp.hook_in", None, "mlp_in.0"),
        ("mlp.hook_in", "hook_resid_post", "mlp_in.0 -> resid_post.0"),
        ("attn.hook_z", "hook_mlp_out", "attn_z.0 -> mlp_out.0"),
        (None, None, "no language model"),
    ],
)
def test_other_sites_are_refused(tmp_path: Path, hook: str | None, hook_out: str | None, sites: str):
    hook_name, hook_name_out = (None if each is None else f"blocks.0.{each}" for each in (hook, hook_out))
    origin = Provenance(hook_name=hook_name, hook_name_out=hook_name_out)
    save_saelens(moved("standard", TRANSCODER).float().eval(), tmp_path / "sae", origin)
    message = refused(tmp_path, tmp_path / "sae")
    assert f"has a dictionary of {sites}, and circuit-tracer takes those that write mlp_out" in message


def test_layers_that_do_not_make_a_set_are_refused(tmp_path: Path):
    zero, one, three = (saved(tmp_path / str(layer), layer) for layer in (0, 1, 3))
    assert "no transcoder of layer 2, and circuit-tracer needs one for each" in refused(tmp_path, zero, one, three)
    assert "are both of layer 0" in refused(tmp_path, zero, saved(tmp_path / "again", 0))
    assert "differ in their linear path;" in refused(tmp_path, zero, saved(tmp_path / "skip", 1, ends=SKIP))
    other = saved(tmp_path / "other", 1, hook_name="hook_resid_mid")
    assert "differ in their language model or sites;" in refused(tmp_path, zero, other)
