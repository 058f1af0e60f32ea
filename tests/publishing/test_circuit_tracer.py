"""circuit-tracer's folder; `tests/peers/test_circuit_tracer.py` opens it with circuit-tracer's own loader."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Ends, Layout, PartNorm, blocks_across_layers, blocks_per_layer
from fsae.export.dictionary_files import load_autoencoder, read_provenance
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.outputs.status import RunState, mark
from fsae.outputs.sweep_folder import Sweep
from fsae.publishing.circuit_tracer import write_circuit_tracer
from tests.architectures import relative_error, samples, settings_of
from tests.autoencoders.test_layout import moved

TRANSCODER = Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(5, "mlp_out.0"))
SKIP = replace(TRANSCODER, skip=True)


def saved(folder: Path, layer: int, arch: str = "jumprelu", ends: Ends = TRANSCODER, **changes: str) -> Path:
    """Return the folder of a transcoder of a layer, with weights of its own."""
    names = {"hook_name": "mlp.hook_in", "hook_name_out": "hook_mlp_out"} | changes
    hooks: dict[str, Any] = {name: f"blocks.{layer}.{hook}" for name, hook in names.items()}
    autoencoder = moved(arch, ends).float().eval()
    with torch.no_grad():
        autoencoder.b_dec.add_(layer)
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
            "W_enc": (14, 5),
            "W_dec": (14, 5),
            "b_enc": (14,),
            "b_dec": (5,),
            **({"activation_function.threshold": (14,)} if arch != "standard" else {}),
            **({"W_skip": (5, 5)} if ends.skip else {}),
        }


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path):
    first, second = saved(tmp_path / "a", 0), saved(tmp_path / "b", 0, "standard")
    for folder in (first, second):
        write_circuit_tracer([folder], tmp_path / "set")
    assert "activation_function.threshold" not in load_file(tmp_path / "set" / "layer_0.safetensors")
    with pytest.raises(ValueError, match="is no such export"):
        write_circuit_tracer([first], first)


LAYERS, WIDTH, OF_LAYER = 3, 5, 4
READ = Layout(tuple((f"mlp_in.{layer}", WIDTH) for layer in range(LAYERS)))
WRITTEN = Layout(tuple((f"mlp_out.{layer}", WIDTH) for layer in range(LAYERS)))
PER_LAYER = Ends(input=READ, target=WRITTEN, blocks=blocks_per_layer(LAYERS), part_norm=PartNorm.joint)
CROSS_LAYER = replace(PER_LAYER, blocks=blocks_across_layers(LAYERS))


def of_layers(arch: str, ends: Ends, folder: Path) -> SparseAutoencoder:
    """Return a transcoder of several layers, which is saved in a folder."""
    generator = torch.Generator().manual_seed(0)
    autoencoder = settings_of(arch, d_sae=LAYERS * OF_LAYER).build(ends, generator).eval()
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    autoencoder.mask_weights()
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(0.5)
    hooks = [[f"blocks.{layer}.{hook}" for layer in range(LAYERS)] for hook in ("mlp.hook_in", "hook_mlp_out")]
    names = Provenance(
        model_name="tiny",
        hook_name=hooks[0][0],
        hook_name_out=hooks[1][0],
        hook_names=hooks[0],
        hook_names_out=hooks[1],
    )
    save_saelens(autoencoder, folder, names)
    return autoencoder


@pytest.mark.parametrize("skip", [True, False])
def test_transcoders_of_layers_side_by_side_are_the_set_of_these(tmp_path: Path, skip: bool):
    autoencoder = of_layers("batch_topk", replace(PER_LAYER, skip=skip), tmp_path / "sae")
    assert write_circuit_tracer([tmp_path / "sae"], tmp_path / "set") == LAYERS
    x = samples(60, LAYERS * WIDTH, dtype=torch.float32)
    wanted = autoencoder(x)
    read = [load_autoencoder(tmp_path / "set" / f"layer_{layer}.safetensors") for layer in range(LAYERS)]
    found = [each(own) for each, own in zip(read, READ.split(x), strict=True)]
    assert relative_error(torch.cat([each.reconstruction for each in found], 1), wanted.reconstruction) < 1e-6
    assert relative_error(torch.cat([each.codes.dense() for each in found], 1), wanted.codes.dense()) < 1e-6


@pytest.mark.parametrize("arch", ["standard", "jumprelu", "batch_topk"])
def test_a_cross_layer_transcoder_is_written_by_layers_and_read_back(tmp_path: Path, arch: str):
    autoencoder = of_layers(arch, CROSS_LAYER, tmp_path / "sae")
    assert write_circuit_tracer([tmp_path / "sae"], tmp_path / "clt") == LAYERS
    assert yaml.safe_load((tmp_path / "clt" / "config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"
    jumps = {"threshold_1": (OF_LAYER,)} if arch != "standard" else {}
    files = {
        "W_enc_1": {"W_enc_1": (OF_LAYER, WIDTH), "b_enc_1": (OF_LAYER,), "b_dec_1": (WIDTH,), **jumps},
        "W_dec_1": {"W_dec_1": (OF_LAYER, 2, WIDTH)},
    }
    for name, shapes in files.items():
        tensors = load_file(tmp_path / "clt" / f"{name}.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    loaded, x = load_autoencoder(tmp_path / "clt"), samples(60, LAYERS * WIDTH, dtype=torch.float32)
    assert relative_error(loaded(x).reconstruction, autoencoder(x).reconstruction) < 1e-6
    assert relative_error(loaded(x).codes.dense(), autoencoder(x).codes.dense()) < 1e-6
    assert loaded.ends.latents(12) == CROSS_LAYER.latents(12)
    assert read_provenance(tmp_path / "clt") == read_provenance(tmp_path / "sae")


def test_a_linear_path_across_layers_is_refused(tmp_path: Path):
    of_layers("standard", replace(CROSS_LAYER, skip=True), tmp_path / "sae")
    assert "has a linear path, and circuit-tracer's files of cross-layer" in refused(tmp_path, tmp_path / "sae")


def test_two_cross_layer_transcoders_are_refused(tmp_path: Path):
    """Latents of the first would write its own layers alone, under the name of those that write all later ones."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        of_layers("standard", CROSS_LAYER, folder)
    message = refused(tmp_path, *folders)
    assert "has a cross-layer transcoder, and 2 runs are named" in message


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


def sweep_of(folder: Path, layers: int) -> Path:
    """Return a sweep's folder, whose jobs are of these layers and have not started."""
    folder.mkdir()
    jobs = [[f"site.layer={layer}"] for layer in range(layers)]
    Sweep(
        folder=folder, tag="", started="", command=[], working_directory="", outputs="", config_dirs=[],
        hydra_overrides=[], constant=[], varied=["site.layer"], jobs=jobs,
    ).write()  # fmt: skip
    return folder


def test_a_sweep_that_is_not_finished_names_the_layers_that_are_missing(tmp_path: Path):
    sweep = sweep_of(tmp_path / "sweep", 5)
    for layer in (0, 3):
        saved(sweep / str(layer) / "sae", layer)
    for layer, state in ((1, RunState.failed), (4, RunState.interrupted)):
        (sweep / str(layer)).mkdir()
        mark(sweep / str(layer), state)
    message = refused(tmp_path, sweep)
    assert "no dictionary of site.layer=1 (failed); site.layer=2 (not started); site.layer=4 (interrupted)" in message
    assert f"finish the sweep with python -m fsae.resume {sweep}, and publish it again" in message
    for layer in (1, 2, 4):
        saved(sweep / str(layer) / "sae", layer)
    assert write_circuit_tracer([sweep], tmp_path / "set") == 5


def test_layers_that_do_not_make_a_set_are_refused(tmp_path: Path):
    zero, one, three = (saved(tmp_path / str(layer), layer) for layer in (0, 1, 3))
    assert "no transcoder of layer 2, and circuit-tracer needs one for each" in refused(tmp_path, zero, one, three)
    assert "are both of layer 0" in refused(tmp_path, zero, saved(tmp_path / "again", 0))
    assert "differ in their linear path;" in refused(tmp_path, zero, saved(tmp_path / "skip", 1, ends=SKIP))
    other = saved(tmp_path / "other", 1, hook_name="hook_resid_mid")
    assert "differ in their language model, sites or layout;" in refused(tmp_path, zero, other)
