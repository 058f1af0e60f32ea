"""sae_lens' side of the tests in this folder: they run it with sae_lens' own Python and never import it.

sae_lens_side.py reconstruct INPUTS OUT FOLDER...     open each folder; codes and reconstructions of INPUTS' x
sae_lens_side.py make INPUTS OUT                      make and save one SAE of every kind, with the same outputs
sae_lens_side.py evaluate FOLDER MODEL TOKENS OUT     sae_lens' evaluation of an SAE on a model and tokens
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.evals import get_downstream_reconstruction_metrics, get_sparsity_and_variance_metrics
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

D_SAE, D_OUT = 40, 7


def reconstruct(inputs: str, out: str, *folders: str) -> None:
    """Write OUT/<name>.safetensors (codes, reconstruction) and OUT/<name>.json (what sae_lens read in cfg.json)."""
    x = load_file(inputs)["x"]
    for folder in map(Path, folders):
        sae = SAE.load_from_disk(folder)
        heads_apart = sae.cfg.reshape_activations == "hook_z"
        write_outputs(sae, x.unflatten(-1, (2, -1)) if heads_apart else x, Path(out) / folder.name)
        config = {"class": type(sae).__name__, **sae.cfg.to_dict()}
        (Path(out) / f"{folder.name}.json").write_text(json.dumps(config))


@torch.no_grad()
def write_outputs(sae, x, stem: Path) -> None:
    codes = sae.encode(x)
    # A skip transcoder's decoder alone leaves the linear path out.
    reconstruction = sae(x).reshape(len(x), -1)
    save_file({"codes": codes, "reconstruction": reconstruction}, stem.with_suffix(".safetensors"))


def make(inputs: str, out: str) -> None:
    """Write OUT/<kind> (as sae_lens saves it) and OUT/<kind>.safetensors."""
    x = load_file(inputs)["x"]
    size = {"d_in": x.shape[1], "d_sae": D_SAE}
    inference = {
        "standard": {},
        "standard_b_dec_kept": {"architecture": "standard", "apply_b_dec_to_input": False},
        "gated": {},
        "jumprelu": {},
        "topk": {"k": 4},
        "topk_by_contribution": {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
        "abstopk": {"k": 4},
        "topk_layer_norm": {"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"},
        "jumprelu_norm_rescale": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
        "matching_pursuit": {},
        "transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
        "skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
        "jumprelu_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
        "jumprelu_skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    }
    for kind, config in inference.items():
        sae = SAE.from_dict({"architecture": kind, **size, **config})
        shake(sae)
        sae.save_model(Path(out) / kind)
        write_outputs(sae, x, Path(out) / kind)
    for kind in ("topk", "batchtopk", "matryoshka_batchtopk"):
        widths = {"matryoshka_widths": [10, D_SAE]} if kind == "matryoshka_batchtopk" else {}
        training = TrainingSAE.from_dict({"architecture": kind, **size, "k": 4, **widths})
        shake(training)
        if kind != "topk":
            training.topk_threshold.fill_(0.6)
        folder = Path(out) / f"trained_{kind}"
        training.save_inference_model(folder)
        write_outputs(SAE.load_from_disk(folder), x, folder)


@torch.no_grad()
def shake(sae) -> None:
    """Move every parameter off its special starting value."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.abs_()


class TokenStore:
    """Replaces sae_lens' activation store, from which its evaluation takes only batches of tokens."""

    def __init__(self, tokens):
        self.batches = iter(tokens)

    def get_batch_tokens(self, batch_size: int):
        return torch.stack([next(self.batches) for _ in range(batch_size)])


def evaluate(model_folder: str, *folders: str) -> None:
    """Write sae_lens' numbers for FOLDER/sae on the tokens in FOLDER/tokens.safetensors, as `FOLDER/theirs.json`."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(model_folder, device="cpu", dtype=torch.float32)
    for folder in map(Path, folders):
        sae = SAE.load_from_disk(folder / "sae")
        numbers = evaluation(sae, model, **load_file(folder / "tokens.safetensors"))
        (folder / "theirs.json").write_text(json.dumps(numbers))


@torch.no_grad()
def evaluation(sae, model, tokens, batch_rows, ignore) -> dict:
    """Return sae_lens' numbers on tokens (rows, context), `batch_rows` at a time, without the token ids to ignore."""
    if sae.cfg.reshape_activations == "hook_z":
        # Like sae_lens' run_evals: the two functions below concatenate the heads themselves.
        sae.turn_off_forward_pass_hook_z_reshaping()
    common = {
        "n_batches": len(tokens) // int(batch_rows),
        "eval_batch_size_prompts": int(batch_rows),
        "ignore_tokens": ignore.tolist(),
        "model_kwargs": {},
    }
    scalars, features = get_sparsity_and_variance_metrics(
        sae,
        model,
        TokenStore(tokens),
        ActivationScaler(),
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        **common,
    )
    spliced = get_downstream_reconstruction_metrics(
        sae, model, TokenStore(tokens), ActivationScaler(), compute_kl=True, compute_ce_loss=True, **common
    )
    return scalars | spliced | {"feature_density": features["feature_density"]}


if __name__ == "__main__":
    {"reconstruct": reconstruct, "make": make, "evaluate": evaluate}[sys.argv[1]](*sys.argv[2:])
