"""An autoencoder's cfg.json, and the settings that evaluate it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.configuration.existing import _compare_model, apply_provenance
from fsae.configuration.schema import RunSettings, settings_of
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.language_models.settings import ModelSettings, Package
from fsae.sources.documents import DatasetSettings
from fsae.sources.open_activations import ActivationSourceSettings
from tests.architectures import build
from tests.composition import composed

SITE = "blocks.1.hook_resid_mid"


def settings_for(folder: Path, *overrides: str, **provenance: Any) -> RunSettings:
    """Return the settings of an evaluation on the tiny model, of an autoencoder with this cfg.json."""
    save_saelens(build("standard", dtype=torch.float32), folder / "sae", Provenance())
    config = folder / "sae" / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"metadata": {"hook_name": SITE} | provenance}))
    return settings_of(composed("debug=tiny", "task=eval", f"sae.path={folder / 'sae'}", *overrides))


def dataset_for(folder: Path, *overrides: str, **provenance: Any) -> DatasetSettings:
    return apply_provenance(settings_for(folder, *overrides, **provenance)).place()[2]


def test_training_ignores_the_provenance():
    settings = settings_of(composed("debug=tiny"))
    assert apply_provenance(settings) is settings
    dataset = settings.place()[2]
    assert (dataset.context, dataset.prepend_bos, dataset.tokens_per_row) == (None, None, 128)


def test_an_evaluation_takes_its_rows_from_the_provenance(tmp_path: Path):
    dataset = dataset_for(tmp_path, context_size=64, prepend_bos=True, seqpos_slice=[5, None])
    assert (dataset.context, dataset.prepend_bos, dataset.skip_positions) == (64, True, 5)


def test_token_ids_left_out_in_training_are_left_out(tmp_path: Path):
    dataset = dataset_for(tmp_path, "dataset.exclude_tokens=[7]", exclude_special_tokens=[7, 3])
    assert dataset.exclude_tokens == [7, 3]


def test_special_tokens_of_the_training_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert dataset_for(tmp_path, exclude_special_tokens=False).exclude_special_tokens
    assert "exclude_special_tokens is true, but" in caplog.text


@pytest.mark.parametrize("provenance", [{}, {"context_size": None, "prepend_bos": None, "seqpos_slice": [None]}])
def test_settings_without_provenance_stay_null(tmp_path: Path, provenance: dict[str, Any]):
    dataset = dataset_for(tmp_path, **provenance)
    assert (dataset.context, dataset.prepend_bos, dataset.skip_positions) == (None, None, 1)


def test_explicit_settings_take_precedence_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    overrides = ("dataset.context=32", "dataset.prepend_bos=false")
    dataset = dataset_for(tmp_path, *overrides, context_size=64, prepend_bos=True)
    assert (dataset.context, dataset.prepend_bos) == (32, False)
    reported = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(",")[0] for message in reported] == ["dataset.context is 32", "dataset.prepend_bos is False"]


def test_the_prefix_and_the_roles_come_from_the_provenance(tmp_path: Path):
    chats = ("dataset=parquet_files", f"dataset.path={tmp_path}", "dataset.chat_column=messages")
    provenance = {"prefix": "Listen: ", "chat_roles": ["assistant"]}
    dataset = dataset_for(tmp_path, *chats, **provenance)
    assert (dataset.prefix, dataset.chat_roles) == ("Listen: ", ["assistant"])
    # Without chats there are no roles.
    assert dataset_for(tmp_path, **provenance).chat_roles is None


def test_token_ids_of_a_data_set_are_not_changed(tmp_path: Path):
    ids = ("dataset=parquet_files", f"dataset.path={tmp_path}", "dataset.tokens_column=ids")
    assert dataset_for(tmp_path, *ids, prepend_bos=True).prepend_bos is None


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"hook_name": "blocks.3.hook_resid_post"}, "was made for .*; set site=resid_post site.layer=3"),
        # TransformerBridge's name of the same hook.
        ({"hook_name": "blocks.3.hook_out"}, "set site=resid_post site.layer=3"),
        (
            {"hook_name": "blocks.3.ln2.hook_scale"},
            r"no site has the hook .*; the sites are resid_pre \(blocks.0.hook_resid_pre\), resid_mid ",
        ),
        # In Gemma 2 a norm lies between these hooks and hook_mlp_out and hook_attn_out, so the vectors differ.
        ({"hook_name": "blocks.1.mlp.hook_out"}, "before the norm .* write 'blocks.1.hook_mlp_out' instead"),
        ({"hook_name": "blocks.1.attn.hook_out"}, "before the norm .* write 'blocks.1.hook_attn_out' instead"),
        (
            {"hook_name": "blocks.1.hook_mlp_in"},
            r"copy of the stream .* resid_mid.1 .* write 'blocks.1.hook_resid_mid'",
        ),
        ({"hook_name": "hook_embed"}, "no site has the hook 'hook_embed'"),
        ({"seqpos_slice": [0, 64]}, "seqpos_slice is .* the first 64 positions alone; set dataset.context=64"),
        ({"seqpos_slice": [0, None, 2]}, "a step other than 1"),
        ({"seqpos_slice": [128, None]}, "none of the 128 positions"),
        ({"context_size": 1}, "cfg.json requires settings that are refused: dataset.context is 1"),
    ],
)
def test_provenance_that_cannot_be_applied_is_refused(tmp_path: Path, provenance: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataset_for(tmp_path, **provenance)


def test_an_autoencoder_of_a_language_model_needs_a_language_model(tmp_path: Path):
    save_saelens(build("standard"), tmp_path / "sae", Provenance(hook_name=SITE))
    other = ("source=grouped_features", "~model", "~site", "~dataset")
    settings = settings_of(composed(*other, "task=eval", f"sae.path={tmp_path / 'sae'}"))
    with pytest.raises(ValueError, match="this source has none; use source=activations"):
        apply_provenance(settings)


def test_an_autoencoder_of_two_models_needs_both(tmp_path: Path):
    settings = settings_for(tmp_path, hook_names=[SITE, SITE], model_names=["tiny", "other"])
    with pytest.raises(ValueError, match=r"choose its two models, tiny and other, as in 'model=\[gpt2,custom\]'"):
        apply_provenance(settings)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [({"hook_name": None}, "does not name the site"), ({"model_name": "gpt2-small"}, "for the model gpt2-small")],
)
def test_unknown_provenance_is_reported_in_a_warning(
    tmp_path: Path, provenance: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
):
    dataset_for(tmp_path, **provenance)
    assert [message in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("made_for", "warning"),
    [
        (Provenance(model_name="google/gemma-2b"), None),
        (Provenance(model_name="gemma-2b"), None),
        (Provenance(model_name="gpt2"), "made for the model gpt2, and it is evaluated on google/gemma-2b"),
        (
            Provenance(model_name="google/gemma-2b", model_note="random weights"),
            "on other weights of it (as published)",
        ),
    ],
)
def test_an_autoencoder_made_for_another_model_is_reported(made_for: Provenance, warning: str | None, caplog):
    _compare_model(ModelSettings(path="google/gemma-2b"), made_for.model_name, made_for.model_note, Path("sae"))
    assert (warning in caplog.text) if warning else not caplog.records


def test_an_autoencoder_made_for_unquantised_weights_is_reported(caplog):
    model = ModelSettings(package=Package.smollm2_135m_instruct_q4_1)
    _compare_model(model, "HuggingFaceTB/SmolLM2-135M-Instruct", None, Path("sae"))
    assert "(as published), and it is evaluated on other weights of it (weights quantised to Q4_1" in caplog.text


def test_the_norm_limit_comes_from_the_provenance(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def limits(*overrides: str) -> tuple[float | None, float | None]:
        source = apply_provenance(settings_for(tmp_path, *overrides, max_activation_norm=812.5)).source
        assert isinstance(source, ActivationSourceSettings)
        return source.max_norm_multiple, source.max_norm

    assert limits() == (10.0, 812.5)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert limits("source.max_norm=812.5") == (10.0, 812.5)
    assert limits("source.max_norm_multiple=null") == (None, None)
    assert "source.max_norm is None, but" in caplog.text
    assert limits("source.max_norm=900") == (10.0, 900.0)
    assert "source.max_norm is 900.0, but" in caplog.text
