"""fsae's held-out numbers equal sae_lens' on the same autoencoder, tokens and model, if the definitions agree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.evaluation.sparsity import SparsityMetric
from fsae.evaluation.splice import evaluate_splice
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from fsae.language_models.settings import DType, ModelSettings
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.tiny import D_MODEL, write_folder
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.sources.layout import Sites
from tests.architectures import build

pytestmark = pytest.mark.peers

ROWS, CONTEXT, BATCH_ROWS, D_SAE, SEPARATOR = 12, 24, 4, 96, 0

# Architecture, site, ids left out. Decoder rows are unit, so that both l1 are sums of codes. attn_z is as wide as the
# stream here. resid_mid is left out: an edit there does not reach the residual stream in sae_lens' model.
CASES: dict[str, tuple[str, SiteName, list[int]]] = {
    "standard": ("standard", SiteName.resid_post, []),
    "gated": ("gated", SiteName.mlp_out, []),
    "jumprelu": ("jumprelu", SiteName.resid_pre, []),
    "topk": ("topk", SiteName.attn_z, []),
    "batch_topk": ("batch_topk", SiteName.attn_out, []),
    "abs_topk": ("abs_topk", SiteName.resid_post, []),
    "separators_left_out": ("standard", SiteName.resid_post, [SEPARATOR]),
}

# fsae's name -> sae_lens' name, for equal definitions.
NAMES = {
    "mse": "mse",
    "cosine": "cossim",
    "l2_ratio": "l2_ratio",
    "l0": "l0",
    "l1": "l1",
    "density": "feature_density",
    "ce_base": "ce_loss_without_sae",
    "ce_spliced": "ce_loss_with_sae",
    "ce_zero": "ce_loss_with_ablation",
    "ce_recovered_zero": "ce_loss_score",
    "kl": "kl_div_with_sae",
}


@pytest.fixture(scope="module")
def evaluated(sae_lens, tmp_path_factory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the numbers of fsae and of sae_lens for every case."""
    root = tmp_path_factory.mktemp("cases")
    write_folder(root / "model")
    model = open_language_model(ModelSettings(path=str(root / "model"), dtype=DType.float32))
    ours = {name: our_evaluation(root / name, model, *case) for name, case in CASES.items()}
    sae_lens("evaluate", root / "model", *(root / name for name in CASES))
    return {name: (ours[name], json.loads((root / name / "theirs.json").read_text())) for name in CASES}


def our_evaluation(
    folder: Path, model: TransformerLensModel, arch: str, site_name: SiteName, ignore: list[int]
) -> dict[str, Any]:
    """Export an autoencoder and tokens to `folder`, and measure it."""
    site = Site(name=site_name, layer=1)
    tokens = text_of(model)
    keep = ~torch.isin(tokens, torch.tensor(ignore, dtype=torch.long))
    x = model.activations(tokens, [site])[site][keep]
    autoencoder = untrained(arch, x)
    scale = D_MODEL**0.5 / x.norm(dim=1).mean().item()
    provenance = Provenance(model_name="tiny", hook_name=site.hook_name, context_size=CONTEXT)
    save_saelens(fold(autoencoder, scale), folder / "sae", provenance)
    given = {"tokens": tokens, "batch_rows": torch.tensor(BATCH_ROWS), "ignore": torch.tensor(ignore, dtype=torch.long)}
    save_file(given, folder / "tokens.safetensors")

    loaded = load_saelens(folder / "sae")
    reconstruction, sparsity = ReconstructionMetric(D_MODEL, x.device), SparsityMetric(D_SAE, x.device)
    for vectors in x.split(50):
        with torch.no_grad():
            record = loaded(vectors)
        reconstruction.update(record)
        sparsity.update(record)
    (spliced,) = evaluate_splice(
        model, Sites((site,), (site,)), [loaded], tokens, keep, reconstruction.mean_target, rows_at_once=5
    )
    frequency = {"density": sparsity.density.tolist()}
    return {**reconstruction.compute(), **sparsity.compute(), **spliced, **frequency}


def text_of(model: TransformerLensModel) -> torch.Tensor:
    """Return rows sampled from the model, so that it predicts them; separators begin and cut them."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.full((ROWS, 1), SEPARATOR)
    while tokens.shape[1] < CONTEXT:
        drawn = model.logits(tokens)[:, -1].softmax(1).multinomial(1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
    tokens[::2, 9] = SEPARATOR
    return tokens


@torch.no_grad()
def untrained(arch: str, x: torch.Tensor) -> Autoencoder:
    """Return an autoencoder whose encoder and decoder have the same directions, roughly like a trained one."""
    autoencoder = build(arch, D_MODEL, D_SAE, dtype=torch.float32).eval()
    autoencoder.normalise_decoder()
    autoencoder.W_enc.copy_(autoencoder.W_dec.T)
    autoencoder.b_dec.copy_(0.3 * x.mean(0))
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(0.5)
    return autoencoder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_agree(evaluated, case, name):
    ours, theirs = evaluated[case]
    if case == "separators_left_out" and name in ("ce_zero", "ce_recovered_zero"):
        # sae_lens also ablates positions that are left out; fsae does not.
        assert ours[name] != pytest.approx(theirs[NAMES[name]], rel=1e-4)
    else:
        assert ours[name] == pytest.approx(theirs[NAMES[name]], rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_fvu_is_what_their_explained_variance_leaves(evaluated, case):
    ours, theirs = evaluated[case]
    assert ours["fvu"] == pytest.approx(1 - theirs["explained_variance"], rel=1e-4)
