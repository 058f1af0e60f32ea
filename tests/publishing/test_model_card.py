"""What a model card says about a run."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import fsae
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.export.folding import fold
from fsae.publishing.model_card import CardFacts, model_card
from fsae.publishing.publication import publication_of
from tests.architectures import build
from tests.autoencoders.test_layout import SKIP, moved

HOOK = "blocks.1.hook_resid_mid"


def test_the_card_has_metadata_data_numbers_and_how_to_load(runs: dict[str, Path]):
    card = ModelCard(publication_of(runs["text"], "me/tiny-sae", licence="mit").text)
    assert card.data.to_dict() == {
        "library_name": "saelens", "license": "mit",
        "tags": ["fsae", "sparse-autoencoder", "mechanistic-interpretability", "topk"],
    }  # fmt: skip
    text = card.text
    assert text.strip().startswith(
        "# tiny-sae\n\nA sparse autoencoder (`topk`, 48 latents) of resid_mid of layer 1 of tiny"
    )
    assert f'SAE.from_pretrained("me/tiny-sae", "{HOOK}")' in text
    assert f'fsae.load(f"{{folder}}/{HOOK}")' in text
    assert "| text | python_source |" in text
    assert "| samples | 4,096 |" in text
    assert re.search(r"\| weights of the objective's terms \| `penalty` \(fisher\) \d", text)
    assert "| left out | special tokens, the first position of a row, vectors of a norm above " in text
    assert f"![Training curves]({HOOK}/training.png)" in text
    results = json.loads((runs["text"] / "results.json").read_text())
    assert f"| fvu | {results['eval/fvu']:.4g} | ↓ | fraction of variance unexplained |" in text
    # Every line of a table has its columns, whatever the meanings contain.
    rows = [line for line in text[text.index("| number |") :].splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_the_card_has_the_settings_without_this_machines_folders(runs: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(runs["text"], run)
    written = yaml.safe_load((run / "config.yaml").read_text())
    written["dataset"] |= {"format": "text", "path": "/home/somebody/books"}
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    text = publication_of(run, "me/sae").text
    settings = yaml.safe_load(text[text.index("```yaml\n") + 8 : text.index("\n```\n\n</details>")])
    assert settings["dataset"]["path"] == "books"
    assert settings["arch"]["k"] == 4
    assert "paths" not in settings
    assert "tracking" not in settings
    assert "/home/somebody" not in text
    assert "| text | books |" in text


def test_a_hub_model_is_the_base_model(runs: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(runs["text"], run)
    written = yaml.safe_load((run / "config.yaml").read_text())
    written["model"] |= {"package": None, "path": "owner/model"}
    written["dataset"] |= {"format": "hub", "path": "owner/texts"}
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    data = ModelCard(publication_of(run, "me/sae").text).data.to_dict()
    assert (data["base_model"], data["datasets"]) == ("owner/model", "owner/texts")


def card_of(autoencoder: SparseAutoencoder, run: Path, *members: dict[str, Any], **names: Any) -> str:
    """Return the card of a dictionary, or of one per member's names, with the settings of a run."""
    loaded = fsae.load(run)
    assert loaded.settings is not None
    written = [
        fsae.Dictionary(autoencoder, provenance=replace(loaded.provenance, **each)) for each in members or (names,)
    ]
    return model_card(
        CardFacts(
            repo="me/sae", folder="sae", dictionaries=written, settings=loaded.settings, written_settings={},
            results={}, licence=None, pictures={}, pages=None, version="1.2",
        )
    )  # fmt: skip


@pytest.mark.parametrize(("arch", "known"), [("jumprelu", True), ("topk", False)], ids=["in_saelens", "not_in_saelens"])
def test_the_card_of_a_transcoder_names_both_sites_and_who_opens_it(runs: dict[str, Path], arch: str, known: bool):
    names = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    text = card_of(moved(arch, SKIP).float(), runs["text"], **names)
    assert "A skip transcoder (`topk`, 14 latents) of mlp_in.1 -> mlp_out.1 of tiny" in text
    assert "| site | `blocks.1.mlp.hook_in` |\n| written site | `blocks.1.hook_mlp_out` |" in text
    assert "- skip-transcoder" in text
    assert ("SAE.from_pretrained(" in text) == known
    assert ("fsae alone opens it" in text) != known


def test_the_card_of_a_pair_names_the_site_of_each(runs: dict[str, Path]):
    members = [{"hook_name": "blocks.1.mlp.hook_in"}, {"hook_name": "blocks.1.hook_mlp_out"}]
    text = card_of(build("topk", 32, dtype=torch.float32), runs["text"], *members)
    assert "latents) of mlp_in of layer 1 and mlp_out of layer 1 of tiny" in text
    assert "| site | `blocks.1.mlp.hook_in`, `blocks.1.hook_mlp_out` |" in text


def test_the_card_names_the_architecture_as_it_was_trained(runs: dict[str, Path]):
    """SAELens' format has no batch_topk, for instance."""
    text = card_of(fold(build("jumprelu", 32, dtype=torch.float32), 0.5), runs["text"])
    assert "| architecture | `topk`, written as `jumprelu` |" in text
    assert "A sparse autoencoder (`topk`, " in text
    assert text.endswith("Made with fsae 1.2.")
    # Sections without content are left out.
    assert "## Numbers" not in text
    assert "## Latents" not in text
    assert "![" not in text
