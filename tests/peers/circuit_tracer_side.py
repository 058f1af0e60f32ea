"""circuit-tracer's side of the tests in this folder: they run it with circuit-tracer's own Python and never import it.

circuit_tracer_side.py FOLDER MODEL TOKENS OUT    open a folder of transcoders, read MODEL's activations on TOKENS, and
                                                  draw the graph of TOKENS as a prompt
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.utils.hf_utils import load_transcoders
from safetensors.torch import load_file, save_file
from transformer_lens import loading_from_pretrained


def opened(folder: Path):
    """Return the transcoders of a folder, by the loader that circuit-tracer's own function for a repository calls."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if config["model_kind"] == "cross_layer_transcoder":
        hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook", "scan")}
        return load_clt(str(folder), device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False, **hooks)
    files = [str(folder / f"layer_{i}.safetensors") for i in range(len(list(folder.glob("layer_*"))))]
    return load_transcoders(config | {"transcoders": files}, device=torch.device("cpu"), lazy_decoder=False)


def local_model(folder: Path, scratch: Path, transcoders):
    """Return circuit-tracer's model of a folder that a newer transformers wrote."""
    shutil.copytree(folder, scratch)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (scratch / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (scratch / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    # TransformerLens opens the models of its own list alone, and others of Llama's architecture get the base 10,000 of
    # rotary positions.
    loading_from_pretrained.OFFICIAL_MODEL_NAMES.append(str(scratch))
    convert, base = loading_from_pretrained.convert_hf_model_config, {"rotary_base": config["rope_theta"]}
    loading_from_pretrained.convert_hf_model_config = lambda name, **options: convert(name, **options) | base
    # TransformerLens makes a mask of n_ctx rows and columns for each layer.
    return ReplacementModel.from_pretrained_and_transcoders(
        str(scratch), transcoders, device=torch.device("cpu"), dtype=torch.float32, n_ctx=256
    )


def main(folder: Path, model_folder: Path, tokens_file: Path, out: Path) -> None:
    """Write OUT: activations, codes and reconstructions (layers first), and the graph."""
    transcoders, tokens = opened(folder), load_file(tokens_file)["tokens"]
    model = local_model(model_folder, out.with_suffix(".model"), transcoders)
    reads, writes = transcoders.feature_input_hook, transcoders.feature_output_hook
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[None])
        layers = range(model.cfg.n_layers)
        read = torch.stack([cache[f"blocks.{layer}.{reads}"][0] for layer in layers])
        written = torch.stack([cache[f"blocks.{layer}.{writes}"][0] for layer in layers])
        codes = transcoders.encode(read)
        reconstruction = transcoders.decode(codes, read)
    graph = attribute(tokens, model, max_n_logits=3, batch_size=64, max_feature_nodes=128)
    found = {
        "read": read,
        "written": written,
        "codes": codes,
        "reconstruction": reconstruction,
        "edges": graph.adjacency_matrix,
        "active": graph.active_features,
        "selected": graph.selected_features,
        "values": graph.activation_values,
        "logits": graph.logit_probabilities,
    }
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
