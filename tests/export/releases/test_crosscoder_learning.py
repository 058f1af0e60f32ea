"""Crosscoders in the layout of crosscoder_learning, compared with its definition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Ends, Layout, PartNorm, Scaling
from fsae.autoencoders.selection import Score
from fsae.autoencoders.settings import DecoderNorm
from fsae.evaluation.reconstruction import PartsMetric
from fsae.export.dictionary_files import load_autoencoder, read_provenance
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.releases.crosscoder_learning import CodeNormalization, save_crosscoder
from tests.architectures import relative_error, samples
from tests.autoencoders.test_layout import BETWEEN, moved
from tests.export.releases.weights import drawn

SITES, D_SITE, D_SAE = 2, 4, 14
LAYOUT = Layout((("resid_mid.0", D_SITE), ("resid_mid.1", D_SITE)))
CROSSCODER = Ends(input=LAYOUT, target=LAYOUT)
ORIGIN = Provenance(model_name="tiny", hook_names=["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"])


def vectors(rows: int = 60) -> Tensor:
    return samples(rows, SITES * D_SITE, dtype=torch.float32)


def their_forward(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction by crosscoder_learning's definition, site by site."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    encoder, rows = tensors["encoder.weight"], tensors["decoder.weight"]
    sites = x.unflatten(1, (len(encoder), -1))
    normalised = "activation_mean" in tensors and not tensors["activation_mean"].isnan().any()
    mean = tensors["activation_mean"] if normalised else torch.zeros(())
    scale = tensors["activation_global_scale"][:, None] if normalised else torch.ones(())
    sites = (sites - mean) * scale
    codes = (sum(sites[:, s] @ encoder[s] for s in range(len(encoder))) + tensors["encoder.bias"]).relu()
    if "threshold" in tensors:
        total, joint = rows.norm(dim=2).sum(0), rows.transpose(0, 1).flatten(1).norm(dim=1)
        norms = {"CROSSCODER": total, "SAE": joint, "MIXED": joint + 0.1 * total, "NONE": torch.ones_like(total)}
        codes = codes * (codes * norms[config["code_normalization"]] > tensors["threshold"])
    found = torch.stack([codes @ rows[s] + tensors["decoder.bias"][s] for s in range(len(rows))], dim=1)
    if normalised:
        found = found / (scale + 1e-8) + mean
    return codes, found.flatten(1)


def write(folder: Path, norm: str, more: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"activation_dim": D_SITE, "dict_size": D_SAE, "num_layers": SITES, "code_normalization": norm}
    (folder / "config.json").write_text(json.dumps(config | changes))
    tensors = {
        "encoder.weight": drawn(SITES, D_SITE, D_SAE),
        "encoder.bias": drawn(D_SAE, by=0.2),
        "decoder.weight": drawn(SITES, D_SAE, D_SITE, seed=1),
        "decoder.bias": drawn(SITES, D_SITE, seed=2),
        "code_normalization_id": torch.tensor(CodeNormalization[norm].value),
    }
    save_file(tensors | more, folder / "model.safetensors")
    return folder


THRESHOLD = {"threshold": torch.tensor(0.8), "k": torch.tensor(4)}
NORMALISED = {
    "activation_mean": drawn(SITES, D_SITE, seed=5),
    "activation_std": drawn(SITES, D_SITE, seed=6).abs(),
    "activation_global_scale": torch.tensor([0.7, 2.0]),
    "target_rms": torch.tensor(1.0),
}
WITHOUT = {name: torch.full_like(tensor, torch.nan) for name, tensor in NORMALISED.items()}


@pytest.mark.parametrize(
    "more", [{}, THRESHOLD, NORMALISED, WITHOUT, THRESHOLD | NORMALISED], ids=lambda x: "+".join(x)
)
@pytest.mark.parametrize("norm", ["CROSSCODER", "SAE", "MIXED", "NONE"])
def test_it_computes_what_crosscoder_learning_does(tmp_path: Path, norm: str, more: dict[str, Tensor]):
    folder, x = write(tmp_path, norm, more), vectors()
    codes, reconstruction = their_forward(folder, x)
    record = load_autoencoder(folder)(x)
    assert (codes != 0).any()
    assert (codes == 0).any()
    assert relative_error(record.codes.dense(), codes) < 1e-5
    assert relative_error(record.reconstruction, reconstruction) < 1e-5


def test_the_threshold_is_compared_with_code_times_norms_by_hand(tmp_path: Path):
    # Codes (1, 2); rows of the norms (3, 4) and (0, 1) at the two sites: 1 * 7 > 3, and 2 * 1 is not.
    tensors = {
        "encoder.weight": torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]),
        "encoder.bias": torch.zeros(2),
        "decoder.weight": torch.tensor([[[3.0], [0.0]], [[4.0], [1.0]]]),
        "decoder.bias": torch.zeros(2, 1),
    }
    write(tmp_path, "CROSSCODER", {}, activation_dim=1, dict_size=2)
    save_file(tensors | {"threshold": torch.tensor(3.0)}, tmp_path / "model.safetensors")
    record = load_autoencoder(tmp_path)(torch.tensor([[1.0, 9.0]]))
    assert record.codes.dense().tolist() == [[1, 0]]
    assert record.reconstruction.tolist() == [[3, 4]]


def crosscoder(arch: str, ends: Ends = CROSSCODER, **changes: Any) -> SparseAutoencoder:
    autoencoder = moved(arch, ends, **changes).float().eval()
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(0.5)
    return autoencoder


def save(autoencoder: Autoencoder, folder: Path, k: int | None = None) -> str:
    folder.mkdir()
    return save_crosscoder(autoencoder, folder, ORIGIN, k, folder)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("arch", "kind"),
    [("standard", "CrossCoder"), ("jumprelu", "BatchTopKCrossCoder"), ("batch_topk", "BatchTopKCrossCoder")],
)
def test_what_is_written_computes_the_same_there_and_read_back(tmp_path: Path, arch: str, kind: str, centred: bool):
    autoencoder, x = crosscoder(arch, apply_b_dec_to_input=centred), vectors()
    assert save(autoencoder, tmp_path / "crosscoder") == kind
    wanted = autoencoder(x)
    codes, reconstruction = their_forward(tmp_path / "crosscoder", x)
    assert relative_error(reconstruction, wanted.reconstruction) < 1e-5
    assert torch.equal(codes != 0, wanted.codes.dense() != 0)
    assert (codes != 0).any()
    if arch != "jumprelu":
        assert relative_error(codes, wanted.codes.dense()) < 1e-5
    loaded = load_autoencoder(tmp_path / "crosscoder")
    assert relative_error(loaded(x).reconstruction, wanted.reconstruction) < 1e-5
    assert loaded.ends.target.widths == [D_SITE] * SITES
    assert read_provenance(tmp_path / "crosscoder") == ORIGIN


@pytest.mark.parametrize("second", ["tiny", "org/chat"])
def test_parts_of_two_models_have_names_of_their_own(tmp_path: Path, second: str):
    # Models with the same hooks, and even with the same name, if their weights differ.
    hook, autoencoder, x = "blocks.1.hook_resid_mid", crosscoder("standard"), vectors()
    origin = Provenance(hook_name=hook, hook_names=[hook, hook], model_names=["tiny", second])
    save_crosscoder(autoencoder, tmp_path, origin, None, tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert loaded.ends.target.names == [hook, f"{hook}_of_{second.removeprefix('org/')}"]
    metric = PartsMetric(loaded.ends, x.device)
    metric.update(loaded(x))
    assert len(metric.of_each()) == SITES


def test_names_and_shapes_are_crosscoder_learnings(tmp_path: Path):
    save(crosscoder("batch_topk"), tmp_path / "crosscoder", k=3)
    shapes = {name: tuple(each.shape) for name, each in load_file(tmp_path / "crosscoder/model.safetensors").items()}
    assert shapes == {
        "encoder.weight": (SITES, D_SITE, D_SAE),
        "encoder.bias": (D_SAE,),
        "decoder.weight": (SITES, D_SAE, D_SITE),
        "decoder.bias": (SITES, D_SITE),
        "code_normalization_id": (),
        "threshold": (),
        "k": (),
    }
    assert json.loads((tmp_path / "crosscoder/config.json").read_text()) == {
        "activation_dim": D_SITE,
        "dict_size": D_SAE,
        "num_layers": SITES,
        "code_normalization": "NONE",
        "k": 3,
    }


@pytest.mark.parametrize(("part_norm", "name"), [(PartNorm.sum, "CROSSCODER"), (PartNorm.joint, "SAE")])
def test_the_norm_of_relu_codes_is_that_of_training(tmp_path: Path, part_norm: PartNorm, name: str):
    ends = Ends(input=LAYOUT, target=LAYOUT, part_norm=part_norm)
    save(crosscoder("standard", ends), tmp_path / "crosscoder")
    assert json.loads((tmp_path / "crosscoder/config.json").read_text())["code_normalization"] == name
    assert load_autoencoder(tmp_path / "crosscoder").ends.part_norm is part_norm


@pytest.mark.parametrize(("part_norm", "name"), [(PartNorm.sum, "CROSSCODER"), (PartNorm.joint, "SAE")])
def test_weighted_scores_are_written_with_their_norm_and_threshold(tmp_path: Path, part_norm: PartNorm, name: str):
    # One scale for both sites: 0.5 is the threshold of scores in units of 2, so 0.25 in raw units.
    ends = Ends(input=LAYOUT, target=LAYOUT, part_norm=part_norm)
    selected = crosscoder("batch_topk", ends, score=Score.weighted, decoder_norm=DecoderNorm.free)
    x = vectors()
    folder = tmp_path / "crosscoder"
    assert save(fold(selected, 2.0), folder) == "BatchTopKCrossCoder"
    assert json.loads((folder / "config.json").read_text())["code_normalization"] == name
    assert load_file(folder / "model.safetensors")["threshold"].item() == pytest.approx(0.25)
    wanted, (codes, reconstruction) = selected(2 * x), their_forward(folder, x)
    assert torch.equal(codes != 0, wanted.codes.dense() != 0)
    assert relative_error(reconstruction, wanted.reconstruction / 2) < 1e-5
    loaded = load_autoencoder(folder)
    assert loaded.ends.part_norm is part_norm
    assert torch.equal(loaded(x).codes.dense() != 0, codes != 0)
    # What was read is written again alike.
    loaded_again = tmp_path / "again"
    save(loaded, loaded_again)
    assert (loaded_again / "config.json").read_text() == (folder / "config.json").read_text()


def test_scales_of_sites_leave_the_same_latents_on_without_a_norm(tmp_path: Path):
    selected = crosscoder("batch_topk", score=Score.weighted, decoder_norm=DecoderNorm.free)
    x, folder = vectors(), tmp_path / "crosscoder"
    scale = LAYOUT.spread((0.5, 3.0), torch.device("cpu"))
    save(fold(selected, Scaling((0.5, 3.0), (0.5, 3.0))), folder)
    assert json.loads((folder / "config.json").read_text())["code_normalization"] == "NONE"
    wanted, (codes, reconstruction) = selected(x * scale), their_forward(folder, x)
    assert torch.equal(codes != 0, wanted.codes.dense() != 0)
    assert relative_error(reconstruction, wanted.reconstruction / scale) < 1e-5


UNEQUAL = Layout((("resid_mid.0", 5), ("resid_mid.1", 3)))


@pytest.mark.parametrize(
    ("arch", "ends", "message"),
    [
        ("topk", CROSSCODER, "has a topk_crosscoder, and crosscoder_learning computes codes by ReLU or by a threshold"),
        ("standard", Ends.of(5), "which is no crosscoder"),
        ("standard", BETWEEN, "which is no crosscoder"),
        ("standard", Ends(input=UNEQUAL, target=UNEQUAL), "has sites of the widths 5, 3"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, arch: str, ends: Ends, message: str):
    with pytest.raises(ValueError, match=message):
        save(crosscoder(arch, ends), tmp_path / "crosscoder")


def test_thresholds_of_0_and_others_are_refused(tmp_path: Path):
    autoencoder = crosscoder("jumprelu")
    autoencoder.get_parameter("log_threshold").data[2] = -torch.inf
    with pytest.raises(ValueError, match="thresholds of 0 and others"):
        save(autoencoder, tmp_path / "crosscoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": None}, "num_layers is None.*it is no crosscoder of crosscoder_learning"),
        ({"code_normalization": "OTHER"}, "code_normalization is 'OTHER', which is not known"),
        ({"code_normalization": "DECOUPLED"}, "with codes of their own at each site"),
        ({"encoder_layers": [1]}, r"encoder_layers is \[1\], which is not supported"),
        ({"dict_size": 5}, r"encoder.weight is \(2, 4, 14\), by config.json it should be \(2, 4, 5\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    write(tmp_path, "SAE", THRESHOLD, **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path)
