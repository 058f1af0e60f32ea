"""Models that cannot be used are refused in one message, which names the file or key and the remedy."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fsae.language_models.identity import model_identity
from fsae.language_models.settings import DType, ModelSettings, OtherModelSettings
from fsae.language_models.shape import shape_of
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import open_language_model
from tests.language_models.zoo import COMMON, D_VOCAB, write_decoder, write_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder("llama", tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A small Llama that a test may damage."""
    return shutil.copytree(whole, tmp_path / "it")


def settings(folder: Path, **changes: Any) -> ModelSettings:
    return ModelSettings(path=str(folder), dtype=DType.float32, **changes)


def refusal(folder: Path, kind: type[ModelSettings] = ModelSettings, **changes: Any) -> str:
    def open_as_a_run_does() -> None:
        opened = kind(path=str(folder), dtype=DType.float32, **changes)
        shape_of(opened)
        open_language_model(opened)

    with pytest.raises(ValueError) as caught:
        open_as_a_run_does()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json is damaged (Expecting value"),
        ('{"model_type": "lla', "config.json is damaged (Unterminated string"),
        ("[1, 2]", "config.json holds a list, but must hold settings by name"),
        ("[" * 100_000, "config.json is damaged (maximum recursion"),
    ],
)
def test_shape_of_refuses_a_damaged_config(content: str, message: str, folder: Path):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        shape_of(settings(folder))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"model.path: {folder}")
    assert str(caught.value).endswith("save or download the model again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "32"}, "config.json: hidden_size is '32'; it must be a whole number above 0"),
        ({"num_hidden_layers": -1}, "config.json: num_hidden_layers is -1; it must be a whole number above 0"),
        ({"num_hidden_layers": True}, "config.json: num_hidden_layers is True"),
        ({"num_attention_heads": 4.0}, "config.json: num_attention_heads is 4.0"),
        ({"is_encoder_decoder": True}, "whose decoder reads an encoder's output"),
    ],
)
def test_shape_of_refuses_impossible_sizes(changes: dict, message: str, folder: Path):
    configure(folder, **changes)
    with pytest.raises(ValueError) as caught:
        shape_of(settings(folder))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nothing"}, "config.json has model_type 'nothing', which transformers does not know"),
        ({"model_type": ["llama"]}, "config.json has model_type ['llama'], which transformers does not know"),
        (
            {"vocab_size": "many"},
            "does not describe a llama model (StrictDataclassFieldValidationError: Validation error ",
        ),
        ({"vocab_size": 500}, "the weights' lm_head.weight is (257, 32), by config.json it should be (500, 32)"),
        ({"num_hidden_layers": 4}, "the weights lack model.layers.2.input_layernorm.weight, "),
        ({"hidden_act": "nope"}, "could not be opened as a language model (KeyError: 'nope')"),
        ({"max_position_embeddings": 0}, "by its config.json it takes 0 tokens"),
    ],
)
def test_opening_refuses_a_config_that_does_not_fit(changes: dict, message: str, folder: Path):
    configure(folder, **changes)
    assert message in refusal(folder)


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_short, f"{WEIGHTS} is truncated or damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is truncated or damaged"),
        (lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs"), f"{WEIGHTS} is truncated or damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"no file named {WEIGHTS}"),
        (_without_a_tensor, "the weights lack model.layers.1.mlp.up_proj.weight"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "/it/tokenizer.json is damaged (EOF while"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "/it/tokenizer.json is damaged ("),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "no tokenizer can be read from"),
    ],
)
def test_the_error_names_a_damaged_file(damage: Callable[[Path], object], message: str, folder: Path):
    damage(folder)
    assert message in refusal(folder)


SMALL = {key: value for key, value in COMMON.items() if key != "max_position_embeddings"}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("BertForMaskedLM", SMALL, "is a BertForMaskedLM, which is no decoder of text (it fills in masked tokens)"),
        ("BertLMHeadModel", SMALL, "reads later tokens"),
        (
            "ViTForImageClassification",
            {**SMALL, "image_size": 16, "patch_size": 8},
            "no decoder of text (it reads images)",
        ),
        ("ModernBertForMaskedLM", {**SMALL, "cls_token_id": 0, "sep_token_id": 0}, "TransformerLens does not open"),
        (
            "T5ForConditionalGeneration",
            {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": D_VOCAB},
            "whose decoder reads an encoder's output",
        ),
        (
            "WhisperForConditionalGeneration",
            {
                "d_model": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "vocab_size": D_VOCAB,
                "pad_token_id": 0,
            },
            "whose decoder reads an encoder's output",
        ),
    ],
)
def test_opening_refuses_models_that_do_not_decode_text(family: str, changes: dict, message: str, tmp_path: Path):
    import transformers

    vision = family.startswith("ViT")
    kept = {key: value for key, value in changes.items() if not (vision and key == "vocab_size")}
    cls = getattr(transformers, family)
    assert message in refusal(write_model(lambda: cls(cls.config_class(**kept)), tmp_path))


def test_opening_refuses_a_tokenizer_larger_than_the_vocabulary(tmp_path: Path):
    import transformers

    config = transformers.LlamaConfig(**{**COMMON, "vocab_size": 100})
    message = refusal(write_model(lambda: transformers.LlamaForCausalLM(config), tmp_path))
    assert "has 100 token ids, but its tokenizer has 257 tokens" in message
    assert message.endswith("model.tokenizer=FOLDER_OR_HUB_NAME")


def test_a_model_without_a_tokenizer_needs_another_models_tokenizer(folder: Path, whole: Path):
    for path in folder.glob("token*"):
        path.unlink()
    assert refusal(folder).endswith("name another model's tokenizer with model.tokenizer=FOLDER_OR_HUB_NAME")
    with_another = settings(folder, tokenizer=str(whole))
    model = open_language_model(with_another)
    assert model.tokenise(["ab"]) == open_language_model(settings(whole)).tokenise(["ab"])
    model.check_splice(Site(name=SiteName.resid_mid, layer=1))
    # Other tokens make other activations, so a store knows which.
    identity = model_identity(with_another)
    assert identity["files"] == model_identity(settings(folder))["files"]
    assert set(identity) - set(model_identity(settings(folder))) == {"tokenizer_files"}


def test_the_error_names_the_key_of_a_missing_tokenizer(folder: Path):
    with pytest.raises(ValueError, match=r"model\.tokenizer: '/no/where/at/all' is no folder on this machine"):
        open_language_model(settings(folder, tokenizer="/no/where/at/all"))


def _without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("[1, 2]"),
        lambda folder: configure(folder, hidden_size="32"),
        lambda folder: configure(folder, model_type="nothing"),
        lambda folder: configure(folder, vocab_size="many"),
        lambda folder: configure(folder, max_position_embeddings=0),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        _without_a_tokenizer,
        _cut_short,
    ],
)
def test_the_settings_of_a_second_model_are_named_as_its_own(damage: Callable[[Path], object], folder: Path):
    damage(folder)
    own = refusal(folder)
    renamed = re.sub(r"model\.(path|tokenizer)", r"layout.model.\1", own).replace("model it", "model it (layout.model)")
    assert renamed != own
    assert refusal(folder, OtherModelSettings) == renamed


def test_the_tokenizer_of_a_second_model_is_named_as_its_own(folder: Path):
    missing: dict[str, Any] = {"tokenizer": "/no/where/at/all"}
    assert refusal(folder, OtherModelSettings, **missing).startswith("layout.model.tokenizer: '/no/where/at/all' is no")
    with pytest.raises(ValueError, match=r"^layout\.model\.tokenizer: "):
        model_identity(OtherModelSettings(path=str(folder), **missing))
