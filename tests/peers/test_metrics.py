"""Our held-out numbers are sae_lens' own, on the same autoencoder, tokens and model, where the definitions agree."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsae.autoencoders.batch_topk import BatchTopK
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.evaluation.sparsity import SparsityMetric
from fsae.evaluation.splice import evaluate_splice
from fsae.export.folding import fold
from fsae.export.saelens import Provenance, load_saelens, save_saelens
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.tiny import D_MODEL, write_folder
from fsae.language_models.transformer_lens_model import TransformerLensModel, open_language_model
from tests.architectures import build

pytestmark = pytest.mark.peers

ROWS, CONTEXT, BATCH_ROWS, SEPARATOR = 12, 24, 4, 0

# Unit decoder rows, so that both l1 are sums of codes. attn_z is as wide as the stream here.
CASES = {
    "standard": SiteName.resid_post,
    "gated": SiteName.mlp_out,
    "jumprelu": SiteName.resid_pre,
    "topk": SiteName.attn_z,
    "batch_topk": SiteName.attn_out,
    "abs_topk": SiteName.resid_post,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder) -> TransformerLensModel:
    return open_language_model(ModelSettings(name="tiny", path=str(model_folder)))


def tokens_with(separators: bool) -> torch.Tensor:
    tokens = torch.randint(1, 257, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(3))
    if separators:
        tokens[:, 0] = SEPARATOR
        tokens[::2, 9] = SEPARATOR
    return tokens


def both(sae_lens, tmp_path, model_folder, model, arch, ignore: list[int]) -> tuple[dict, dict]:
    """Our numbers and theirs, under our names."""
    site = Site(name=CASES[arch], layer=1)
    tokens = tokens_with(separators=bool(ignore))
    keep = ~torch.isin(tokens, torch.tensor(ignore, dtype=torch.long))
    x = model.activations(tokens, [site])[site][keep]

    autoencoder = build(arch, D_MODEL, 96, dtype=torch.float32).eval()
    autoencoder.normalise_decoder()
    with torch.no_grad():
        # An encoder of the decoder's directions at least resembles a trained one: no metric is at an extreme.
        autoencoder.W_enc.copy_(autoencoder.W_dec.T)
        autoencoder.b_dec.copy_(0.3 * x.mean(0))
        if isinstance(autoencoder, BatchTopK):
            autoencoder.threshold.fill_(0.5)
    provenance = Provenance(model_name="tiny", hook_name=site.hook_name, context_size=CONTEXT)
    save_saelens(fold(autoencoder, D_MODEL**0.5 / x.norm(dim=1).mean().item()), tmp_path / "sae", provenance)

    save_file(
        {"tokens": tokens, "batch_rows": torch.tensor(BATCH_ROWS), "ignore": torch.tensor(ignore, dtype=torch.long)},
        tmp_path / "tokens.safetensors",
    )
    sae_lens("evaluate", tmp_path / "sae", model_folder, tmp_path / "tokens.safetensors", tmp_path / "theirs.json")
    theirs = json.loads((tmp_path / "theirs.json").read_text())

    loaded = load_saelens(tmp_path / "sae")
    reconstruction, sparsity = ReconstructionMetric(D_MODEL, x.device), SparsityMetric(96, x.device)
    for vectors in x.split(50):
        with torch.no_grad():
            record = loaded(vectors)
        reconstruction.update(record)
        sparsity.update(record)
    spliced = evaluate_splice(model, site, loaded, tokens, keep, reconstruction.mean_input, rows_at_once=5)
    ours = reconstruction.compute() | sparsity.compute() | spliced
    ours["firing_frequency"] = sparsity.firing_frequency.tolist()
    renamed = {
        "fvu": 1 - theirs["explained_variance"],
        "mse": theirs["mse"],
        "cosine": theirs["cossim"],
        "l2_ratio": theirs["l2_ratio"],
        "l0": theirs["l0"],
        "l1": theirs["l1"],
        "firing_frequency": theirs["feature_density"],
        "ce_base": theirs["ce_loss_without_sae"],
        "ce_spliced": theirs["ce_loss_with_sae"],
        "kl": theirs["kl_div_with_sae"],
        "ce_zero": theirs["ce_loss_with_ablation"],
        "ce_recovered_zero": theirs["ce_loss_score"],
    }
    return ours, renamed


@pytest.mark.parametrize("arch", CASES)
def test_numbers_agree_over_all_tokens(sae_lens, tmp_path, model_folder, model, arch):
    ours, theirs = both(sae_lens, tmp_path, model_folder, model, arch, ignore=[])
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-4), name


def test_numbers_agree_with_special_tokens_left_out(sae_lens, tmp_path, model_folder, model):
    ours, theirs = both(sae_lens, tmp_path, model_folder, model, "standard", ignore=[SEPARATOR])
    # sae_lens sets the left-out positions to zero as well when it ablates; we leave them to the model.
    for name in theirs.keys() - {"ce_zero", "ce_recovered_zero"}:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert ours["ce_zero"] != pytest.approx(theirs["ce_zero"], rel=1e-4)
