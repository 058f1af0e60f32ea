import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, read_provenance, save_saelens
from tests.architectures import (
    ARCHITECTURES,
    FITTED,
    SquaredSettings,
    build,
    each_architecture,
    each_with,
    fitted,
    relative_error,
    samples,
)

PROVENANCE = Provenance(
    model_name="tiny", hook_name="blocks.1.hook_resid_mid", context_size=16, prepend_bos=True, dataset_path="here"
)


def trained(arch: str, **changes) -> Autoencoder:
    autoencoder = build(arch, dtype=torch.float32, **changes).eval()
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(0.5)
    return autoencoder


def written(folder: Path, arch: str = "standard") -> Path:
    save_saelens(trained(arch), folder / "sae", PROVENANCE)
    return folder / "sae"


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_weights(folder: Path, **changes) -> None:
    tensors = load_file(folder / "sae_weights.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "sae_weights.safetensors")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_colleagues_can_read_it_as_far_as_the_umask_lets_them(tmp_path: Path, umask: int, mode: int):
    before = os.umask(umask)
    try:
        save_saelens(trained("standard"), tmp_path / "sae", PROVENANCE, torch.ones(8))
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "sae").iterdir()} == {
        "cfg.json": mode,
        "sae_weights.safetensors": mode,
        "sparsity.safetensors": mode,
    }


@each_with("apply_b_dec_to_input")
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_read_back_it_encodes_and_reconstructs_the_same(tmp_path, arch, apply_b_dec_to_input):
    autoencoder = trained(arch, apply_b_dec_to_input=apply_b_dec_to_input)
    save_saelens(autoencoder, tmp_path / "sae", PROVENANCE)
    loaded = load_saelens(tmp_path / "sae")
    x = samples(100, dtype=torch.float32)
    with torch.no_grad():
        wanted, got = autoencoder(x), loaded(x)
    assert not loaded.training
    assert relative_error(got.codes.dense(), wanted.codes.dense()) < 1e-6
    assert relative_error(got.reconstruction, wanted.reconstruction) < 1e-6


@pytest.mark.parametrize("arch", list(FITTED))
def test_fitted_architectures_are_read_back_and_a_warning_names_those_that_saelens_refuses(tmp_path, arch, caplog):
    autoencoder = fitted(arch)
    save_saelens(autoencoder, tmp_path / "sae", PROVENANCE)
    loaded = load_saelens(tmp_path / "sae")
    x = samples(100, dtype=torch.float32)
    with torch.no_grad():
        wanted, got = autoencoder(x), loaded(x)
    assert relative_error(got.codes.dense(), wanted.codes.dense()) < 1e-6
    assert relative_error(got.reconstruction, wanted.reconstruction) < 1e-6
    word = json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"]
    # PCA is an AbsTopK that leaves all latents on, which SAELens knows.
    assert word == ("abstopk" if arch == "pca" else arch)
    assert (f"SAELens has no architecture {arch}" in caplog.text) == (arch != "pca")


@each_architecture
def test_names_and_shapes_are_saelens_own(tmp_path, arch):
    folder = written(tmp_path, arch)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    common = {"W_enc": (5, 14), "W_dec": (14, 5), "b_dec": (5,)}
    if "encoder_init" in ARCHITECTURES[arch].fixed:
        del common["W_enc"]
    word, per_latent = ARCHITECTURES[arch].saelens
    assert shapes == common | dict.fromkeys(per_latent, (14,)) | ARCHITECTURES[arch].shapes
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == (word, 5, 14)
    assert config["normalize_activations"] == "none"
    without_k = ("standard", "gated", "jumprelu", "matching_pursuit", "signed_gated", "top_afa")
    assert config.get("k") == (None if word in without_k else ARCHITECTURES[arch].changes["k"])
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_mid"


@pytest.mark.parametrize(("hook", "reshaping"), [("attn.hook_z", "hook_z"), ("hook_attn_out", "none")])
def test_heads_are_reshaped_for_attn_z_alone(tmp_path, hook, reshaping):
    save_saelens(trained("standard"), tmp_path / "sae", Provenance(hook_name=f"blocks.0.{hook}"))
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["reshape_activations"] == reshaping
    load_saelens(tmp_path / "sae")


def test_density_is_kept_as_log10(tmp_path):
    density = torch.tensor([0.0, 0.001, 1.0] + [0.1] * 10)
    save_saelens(trained("standard"), tmp_path / "sae", PROVENANCE, density=density)
    sparsity = load_file(tmp_path / "sae" / "sparsity.safetensors")["sparsity"]
    assert sparsity[:3].tolist() == pytest.approx([-10, -3, 0], abs=1e-5)


def test_saving_again_replaces_the_folder_whole(tmp_path):
    folder = written(tmp_path, "gated")
    (folder / "sparsity.safetensors").touch()
    written(tmp_path, "standard")
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_full_disk_leaves_the_earlier_folder(tmp_path):
    folder = written(tmp_path, "standard")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    large = trained("standard", d_in=64, d_sae=256)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so a write beyond the limit fails like a write to a full disk.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write the autoencoder to .*sae.*free space"):
            save_saelens(large, folder, PROVENANCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
import fsae.export.saelens as saelens
from tests.export.test_saelens import PROVENANCE, trained

def save_half(tensors, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), 9)

saelens.save_file = save_half
saelens.save_saelens(trained("gated"), Path(sys.argv[1]), PROVENANCE)
"""


def test_a_kill_while_writing_leaves_the_earlier_folder(tmp_path):
    folder = written(tmp_path, "standard")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(folder)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # The leftover temporary folder does not hinder the next save.
    save_saelens(trained("gated"), folder, PROVENANCE)
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        load_saelens(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file(tmp_path, name):
    folder = written(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"sae has no {name}"):
        load_saelens(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(tmp_path, kept):
    path = written(tmp_path) / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is truncated or damaged"):
        load_saelens(path.parent)


@pytest.mark.parametrize("text", ['{"d_in": 5,', "", "[]", "null", "[" * 100_000])
def test_a_damaged_config(tmp_path, text):
    folder = written(tmp_path)
    (folder / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=r"cfg.json .*download it again"):
        load_saelens(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": None}, r"has no b_enc; it holds W_dec, W_enc, b_dec"),
        ({"W_enc": torch.zeros(14, 5)}, r"W_enc is \(14, 5\), by cfg.json it should be \(5, 14\)"),
        ({"W_skip": torch.zeros(5, 5)}, r"holds W_skip, which this architecture has no use for"),
        ({"scaling_factor": torch.full((14,), 2.0)}, r"holds scaling_factor"),
        ({"b_enc": torch.tensor([0.0] * 13 + [float("nan")])}, r"1 of 14 numbers of b_enc are not finite"),
        # The value overflows float32.
        ({"W_dec": torch.full((14, 5), 1e300, dtype=torch.float64)}, r"70 of 70 numbers of W_dec are not finite"),
        ({"W_enc": torch.full((5, 14), 1e37)}, r"W_enc goes up to 1e\+37, beyond any weight"),
        ({"W_dec": torch.full((14, 5), -1e30)}, r"W_dec goes up to 1e\+30"),
        ({"b_enc": torch.full((14,), 2e12)}, r"b_enc goes up to 2e\+12"),
        ({"W_dec": torch.zeros(14, 5)}, r"W_dec is all zero, so it explains nothing"),
        ({"W_enc": torch.zeros(5, 14)}, r"W_enc is all zero"),
        ({"W_dec": torch.ones(14, 5, dtype=torch.int32)}, r"W_dec is of int32, which weights cannot be"),
        ({"b_enc": torch.zeros(14).to(torch.float8_e4m3fn)}, r"b_enc is of float8_e4m3fn, which weights cannot be"),
        ({"b_enc": torch.zeros(14, dtype=torch.bool)}, r"b_enc is of bool"),
        ({"b_enc": torch.zeros(14, dtype=torch.complex64)}, r"b_enc is of complex64"),
        ({"b_enc": torch.zeros(())}, r"b_enc is \(\), by cfg.json it should be \(14,\)"),
    ],
)
def test_wrong_tensors(tmp_path, changes, message):
    folder = written(tmp_path)
    change_weights(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_saelens(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, r"'temporal' is not known; known are standard, gated, jumprelu, topk, abstopk"),
        ({"activation_fn_str": "tanh-relu"}, r"activation function 'tanh-relu' is not known"),
        (
            {"normalize_activations": "covariance_whitening"},
            r"'covariance_whitening', which is not known; known are none",
        ),
        ({"normalize_activations": "constant_scalar_rescale"}, r"add it as 'activation_normalization_factor'"),
        (
            {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": -1},
            r"norm_scaling_factor is -1; it must be a positive number",
        ),
        ({"normalize_activations": "expected_average_only_in"}, r"the factor is not in the file"),
        ({"reshape_activations": "hook_q"}, r"reshape_activations is 'hook_q'"),
        ({"d_sae": ...}, r"d_sae is None; it must be a positive whole number"),
        ({"d_in": 6}, r"W_enc is \(5, 14\), by cfg.json it should be \(6, 14\)"),
        ({"architecture": "topk"}, r"k is None"),
        ({"architecture": "topk", "k": 15}, r"k is 15, more than the 14 latents"),
        # The values have the wrong type.
        ({"d_in": True}, r"d_in is True; it must be a positive whole number"),
        ({"d_in": 5.0}, r"d_in is 5\.0"),
        ({"d_in": float("inf")}, r"d_in is inf"),
        ({"d_in": "5"}, r"d_in is '5'"),
        ({"d_sae": -13}, r"d_sae is -13"),
        ({"d_sae": [14]}, r"d_sae is \[14\]"),
        ({"architecture": ["standard"]}, r"architecture \['standard'\] is not known"),
        ({"architecture": None}, r"architecture None is not known"),
        ({"architecture": "topk", "k": True}, r"k is True"),
        ({"architecture": "topk", "k": 3.5}, r"k is 3\.5"),
        ({"architecture": "topk", "k": 0}, r"k is 0"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": "3"}}, r"k is '3'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [3]}, r"activation_fn_kwargs is \[3\]"),
        ({"activation_fn_kwargs": {"k": 3}}, r"activation_fn_kwargs names k, which standard has no use for"),
        ({"activation_fn_str": "topk", "k": 3, "activation_fn_kwargs": {"k": 4}}, r"k is 3, but in .* 4"),
        ({"activation_fn_str": "topk", "architecture": "jumprelu"}, r"jumprelu, but the activation function is topk"),
        ({"apply_b_dec_to_input": 1}, r"apply_b_dec_to_input is 1; it must be true or false"),
        ({"rescale_acts_by_decoder_norm": "yes"}, r"rescale_acts_by_decoder_norm is 'yes'"),
        ({"dtype": "int8"}, r"dtype is 'int8'; known are float32"),
        ({"dtype": 32}, r"dtype is 32"),
        ({"d_out": 6}, r"d_out is 6, but d_in is 5, and .* one site; that of a transcoder is 'transcoder'"),
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, "it writes another site than it reads, and the architecture"),
        ({"architecture": "local_pca", "rank": 2}, r"d_sae is 14, no multiple of 1 \+ rank \(3\)"),
    ],
)
def test_configs_that_cannot_be_honoured(tmp_path, changes, message):
    folder = written(tmp_path)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_saelens(folder)


@pytest.mark.parametrize("threshold", [-0.2, -1.0])
def test_negative_thresholds_are_refused(tmp_path, threshold):
    folder = written(tmp_path, "jumprelu")
    change_weights(folder, threshold=torch.tensor([threshold] + [0.5] * 13))
    with pytest.raises(ValueError, match="1 of 14 thresholds are negative"):
        load_saelens(folder)


def test_thresholds_beyond_any_pre_activation_are_refused(tmp_path):
    folder = written(tmp_path, "jumprelu")
    change_weights(folder, threshold=torch.tensor([0.5] * 13 + [1e38]))
    with pytest.raises(ValueError, match=r"threshold goes up to 1e\+38"):
        load_saelens(folder)


def old_layout(folder: Path, **changes) -> Path:
    """cfg.json as SAELens wrote it before its version 6: all in one object, other names in the oldest."""
    folder = written(folder)
    old = {"architecture": "standard", "d_in": 5, "d_sae": 14, "dtype": "torch.float32", "model_name": "gpt2-small"}
    old |= {"activation_fn_str": "relu", "activation_fn_kwargs": {}, "prepend_bos": True, "context_size": 64}
    (folder / "cfg.json").write_text(json.dumps(old | changes))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "hook_head_index": None},
        {"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3, "hook_point_head_index": None},
        {"metadata": {"hook_name": "blocks.3.hook_resid_post"}},
    ],
)
def test_older_layouts_say_what_they_were_trained_on(tmp_path, changes):
    said = read_provenance(old_layout(tmp_path, **changes, seqpos_slice=[None]))
    assert said == Provenance(
        model_name="gpt2-small",
        hook_name="blocks.3.hook_resid_post",
        context_size=64,
        prepend_bos=True,
        seqpos_slice=[None],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": 3}, "hook_name is 3; it must be the name of a site, or null"),
        ({"hook_name": "blocks.3.hook_resid_post", "hook_layer": 2}, "but hook_layer is 2"),
        ({"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 13}, "but hook_layer is 13"),
        ({"hook_point": "blocks.3.hook_mlp_out", "hook_name": "blocks.3.hook_resid_post"}, "but hook_name is"),
        ({"hook_name": "blocks.1.hook_mlp_out", "hook_head_index": 2}, "hook_head_index is 2, .* no single attention"),
        ({"hook_name": "blocks.1.attn.hook_z", "hook_head_index": "2"}, "hook_head_index is '2'; it must be the index"),
        ({"context_size": "64"}, "context_size is '64'; it must be a positive whole number, or null"),
        ({"context_size": 0}, "context_size is 0"),
        ({"prepend_bos": 1}, "prepend_bos is 1; it must be true or false, or null"),
        ({"model_name": ["gpt2"]}, "model_name is"),
        ({"exclude_special_tokens": "yes"}, "exclude_special_tokens is 'yes'; it must be true, false, a list"),
        ({"exclude_special_tokens": [1.5]}, "exclude_special_tokens is"),
        ({"chat_roles": "assistant"}, "chat_roles is 'assistant'; it must be a list of roles"),
        ({"matryoshka_widths": "all"}, "matryoshka_widths is 'all'; it must be a list of whole numbers"),
        ({"seqpos_slice": 5}, "seqpos_slice is 5; it must be a list of start, stop and step"),
        ({"seqpos_slice": ["a"]}, "seqpos_slice is"),
        ({"metadata": {"prepend_bos": False}}, "prepend_bos is True, but metadata.prepend_bos is False"),
        ({"metadata": {"context_size": 65}}, "context_size is 64, but metadata.context_size is 65"),
        ({"metadata": {"model_name": "gemma-2b"}}, "model_name is 'gpt2-small', but metadata.model_name is"),
        ({"hook_layer": 3, "metadata": {"hook_point_layer": 4}}, "hook_layer is 3, but metadata.hook_point_layer is 4"),
        (
            {"model_from_pretrained_kwargs": {"fold_ln": True}},
            "model_from_pretrained_kwargs has fold_ln=True: .* as pub",
        ),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True, "dtype": "float16"}}},
            "metadata.model_from_pretrained_kwargs has center_writing_weights=True: ",
        ),
        ({"model_from_pretrained_kwargs": {"revision": "step1000"}}, "has revision='step1000'"),
        ({"model_from_pretrained_kwargs": [1]}, r"model_from_pretrained_kwargs is \[1\]; it must be an object"),
        ({"metadata": []}, r"metadata is \[\]; it must be an object"),
    ],
)
def test_what_it_says_of_itself_must_be_possible(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"cfg.json: .*{message}"):
        read_provenance(old_layout(tmp_path, **changes))


@pytest.mark.parametrize(
    "arguments", [None, {}, {"center_writing_weights": False, "fold_ln": None}, {"dtype": "float16", "n_devices": 2}]
)
def test_a_model_that_was_opened_as_published_is_no_hindrance(tmp_path, arguments):
    metadata = {"prepend_bos": True, "context_size": None, "model_from_pretrained_kwargs": arguments}
    said = read_provenance(old_layout(tmp_path, model_from_pretrained_kwargs=arguments, metadata=metadata))
    assert (said.prepend_bos, said.context_size) == (True, 64)


def test_a_byte_order_mark_is_read_over(tmp_path):
    folder = written(tmp_path)
    (folder / "cfg.json").write_bytes(b"\xef\xbb\xbf" + (folder / "cfg.json").read_bytes())
    load_saelens(folder)
    assert read_provenance(folder) == PROVENANCE


def test_rows_of_zeros_stay_so_where_topk_is_folded(tmp_path):
    autoencoder = trained("topk")
    with torch.no_grad():
        autoencoder.W_dec[4] = 0
    save_saelens(autoencoder, tmp_path / "sae", PROVENANCE)
    change_config(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    loaded = load_saelens(tmp_path / "sae")
    assert torch.equal(loaded.W_dec[4], torch.zeros(5))
    assert torch.isfinite(loaded(samples(20, dtype=torch.float32)).reconstruction).all()


def test_topk_that_chooses_by_contribution_is_folded(tmp_path):
    autoencoder = trained("topk")
    save_saelens(autoencoder, tmp_path / "sae", PROVENANCE)
    change_config(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    x = samples(100, dtype=torch.float32)
    loaded = load_saelens(tmp_path / "sae")
    with torch.no_grad():
        # The definition: the k largest of relu(pre) * norm are kept, and decoded by unit rows.
        norms = autoencoder.W_dec.norm(dim=1)
        lengths = autoencoder(x).pre_activations.dense() * norms
        codes = torch.where(lengths >= lengths.topk(3, dim=1).values[:, -1:], lengths.relu(), 0)
        got = loaded(x)
        assert relative_error(got.codes.dense(), codes) < 1e-5
        assert relative_error(got.reconstruction, (codes / norms) @ autoencoder.W_dec + autoencoder.b_dec) < 1e-5


def test_a_threshold_of_zero_leaves_the_relu(tmp_path):
    folder = written(tmp_path, "jumprelu")
    change_weights(folder, threshold=torch.zeros(14))
    weights = load_file(folder / "sae_weights.safetensors")
    x = samples(50, dtype=torch.float32)
    with torch.no_grad():
        codes = load_saelens(folder)(x).codes.dense()
    assert relative_error(codes, torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])) < 1e-5


def outputs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    x = samples(50, dtype=torch.float32)
    with torch.no_grad():
        record = load_saelens(folder)(x)
    return record.codes.dense(), record.reconstruction


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.4},
        {"normalize_activations": True, "norm_scaling_factor": 0.4},
        {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.4},
    ],
)
def test_a_factor_of_all_activations_is_folded(tmp_path, changes):
    folder = written(tmp_path, "jumprelu")
    x = samples(50, dtype=torch.float32)
    with torch.no_grad():
        expected = load_saelens(folder)(0.4 * x)
    change_config(folder, **changes)
    codes, reconstruction = outputs(folder)
    assert relative_error(codes, expected.codes.dense()) < 1e-5
    assert relative_error(reconstruction, expected.reconstruction / 0.4) < 1e-5


def test_the_factor_of_a_training_checkpoint_is_in_a_file_of_its_own(tmp_path):
    folder = written(tmp_path)
    change_config(folder, normalize_activations="expected_average_only_in", norm_scaling_factor=0.4)
    expected = outputs(folder)
    change_config(folder, norm_scaling_factor=...)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.4, "has_whitening": false}')
    assert all(map(torch.equal, outputs(folder), expected))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_a_training_checkpoint_of_batchtopk_has_one_threshold(tmp_path, name, by_norm):
    folder = written(tmp_path)
    change_config(folder, architecture=name, k=3, rescale_acts_by_decoder_norm=by_norm)
    change_weights(folder, topk_threshold=torch.tensor(0.7, dtype=torch.float64))
    w = load_file(folder / "sae_weights.safetensors")
    norms = w["W_dec"].norm(dim=1) if by_norm else torch.ones(14)
    pre = ((samples(50, dtype=torch.float32) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    expected = pre * (pre > 0.7)
    codes, reconstruction = outputs(folder)
    assert relative_error(codes, expected) < 1e-5
    assert relative_error(reconstruction, (expected / norms) @ w["W_dec"] + w["b_dec"]) < 1e-5


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_of_latents_from_fine_tuning_multiply_the_decoder(tmp_path, name):
    folder = written(tmp_path)
    codes, _ = outputs(folder)
    w, factors = load_file(folder / "sae_weights.safetensors"), torch.linspace(0.5, 2, 14)
    change_config(folder, finetuning_scaling_factor=True)
    change_weights(folder, **{name: factors})
    found, reconstruction = outputs(folder)
    assert torch.equal(found, codes)
    assert relative_error(reconstruction, (codes * factors) @ w["W_dec"] + w["b_dec"]) < 1e-5


def test_a_flag_of_fine_tuning_without_factors_changes_nothing(tmp_path):
    folder = written(tmp_path)
    expected = outputs(folder)
    change_config(folder, finetuning_scaling_factor=True)
    assert all(map(torch.equal, outputs(folder), expected))


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    autoencoder = SquaredSettings(d_sae=14).build(5, torch.Generator())
    with pytest.raises(
        ValueError, match=r"Squared computes codes in its own way, but does not define change_unit or latents_compete"
    ):
        save_saelens(autoencoder, tmp_path / "sae", PROVENANCE)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_provenance_is_read_back(tmp_path):
    whole = replace(
        PROVENANCE,
        hook_name="blocks.1.attn.hook_z",
        hook_name_out="blocks.1.hook_mlp_out",
        hook_names=["blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"],
        hook_names_out=["blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out"],
        model_names=["tiny", "tiny2"],
        model_notes=["in 4 bits", None],
        pair_hook_names=["blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"],
        hook_head_index=2,
        model_note="in 4 bits",
        exclude_special_tokens=[1, 2],
        seqpos_slice=[1, None],
        max_activation_norm=9.5,
        max_activation_norms=[9.5, 8.0],
        prefix="Listen: ",
        chat_roles=["assistant"],
        matryoshka_widths=[4, 32],
    )
    # No field is None, so the test fails if a field is not read.
    assert None not in asdict(whole).values()
    save_saelens(trained("standard"), tmp_path / "sae", whole)
    assert read_provenance(tmp_path / "sae") == whole
