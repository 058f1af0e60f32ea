from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.evaluation.downstream.entities import Entities
from fsae.evaluation.downstream.entity_prompts import Prompt, known, prompts_about, rows_of
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from tests.evaluation.downstream.texts import BOS, SEPARATOR, CharacterModel, Text

ENTITIES = Entities(
    {"Paris": {"country": "France"}, "São Paulo": {"country": "Brazil"}, "Reykjavík": {"country": "Iceland"}},
    {"country": ["%s is in", "The city of %s is in the country of", "Where is %s", 'A list: {"%s": "', "We saw %s,"]},
)


def check_places(model: Any, with_bos: bool) -> list[Prompt]:
    """Check that the text up to each place ends with the entity."""
    found = prompts_about(model, ENTITIES, with_bos)
    for prompt in found:
        ids = prompt.ids[with_bos:]
        assert model.text(ids[: prompt.place + 1 - with_bos]).endswith(prompt.entity)
        assert not model.text(ids[: prompt.place - with_bos]).endswith(prompt.entity)
        assert model.text([*ids, *prompt.answer]).endswith(ENTITIES.values[prompt.entity]["country"])
        assert (prompt.ids[0] == model.bos_token_id) == with_bos
    return found


@pytest.mark.packaged
@pytest.mark.parametrize("package", [Package.smollm2_135m_instruct_q4_1])
def test_the_place_is_the_entitys_last_token_for_every_tokenizer(package: Package):
    model: TransformerLensModel = open_language_model(ModelSettings(package=package))
    plain, with_bos = check_places(model, False), check_places(model, True)
    assert len(plain) == len(with_bos) >= 12
    for own, other in zip(plain, with_bos, strict=True):
        assert own == other._replace(ids=other.ids[1:], place=other.place - 1)


class Spelling(CharacterModel):
    """A model whose tokens are characters, and which answers as a table says."""

    def __init__(self, answers: dict[str, str]):
        super().__init__()
        self.answers = answers

    def text(self, ids: Any) -> str:
        return bytes(ids).decode("latin-1")

    def logits(self, tokens: Tensor, *replacements: Any) -> Tensor:
        for _, function in replacements:
            function(self.table[tokens])
        logits = torch.zeros(*tokens.shape, 256)
        for row, ids in enumerate(tokens.tolist()):
            text = self.text(each for each in ids if each not in (BOS, SEPARATOR))
            for question, answer in self.answers.items():
                if text.startswith(question):
                    begin = ids.index(ord(question[0])) + len(question) - 1
                    for place, letter in enumerate(answer):
                        if begin + place < len(ids):
                            logits[row, begin + place, ord(letter)] = 1
        return logits


@pytest.mark.parametrize("with_bos", [False, True])
def test_the_place_of_a_tokenizer_of_characters(with_bos: bool):
    found = check_places(Spelling({}), with_bos)
    assert len(found) == 15
    # The last "s" of "Paris", and "F" without a space behind an opening quotation mark.
    first, quoted = found[0], found[3]
    assert first.place == 4 + with_bos
    assert bytes(first.answer) == b" France"
    assert bytes(quoted.answer) == b"France"


def test_prompts_with_the_whole_right_answer_are_known():
    model = Spelling({"We saw Paris,": " France", "Where is Paris": " Frankfurt", "Paris is in": " France"})
    text = cast(Any, Text(model=model))
    prompts = prompts_about(cast(Any, model), ENTITIES, True)
    found = known(text, prompts, lambda: None)
    assert [bytes(each.ids[1:]) for each in found.prompts] == [b"Paris is in", b"We saw Paris,"]
    assert found.asked == 15
    torch.testing.assert_close(found.vectors, model.table[[ord("s"), ord("s")]])
    # Massive activations, and entities at the first token, are left out.
    text.norm_limit = 1e-3
    assert not known(text, prompts, lambda: None).prompts
    text.norm_limit = None
    assert not known(text, [prompts[0]._replace(place=0)], lambda: None).prompts


def test_rows_are_padded_at_their_ends():
    prompts = [Prompt("a", "b", (5, 6, 7), 1, (8,)), Prompt("a", "b", (5,), 0, (8, 9))]
    rows = rows_of(prompts, 1, answers=True)
    assert rows.tokens.tolist() == [[5, 6, 7, 8], [5, 8, 9, 1]]
    assert (rows.places.tolist(), rows.ends.tolist()) == ([1, 0], [2, 0])
