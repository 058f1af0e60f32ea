"""Packing, with a vocabulary in which a letter is its place in the alphabet."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fsae.language_models.chat import UnwritableChat
from fsae.sources.documents import DatasetFormat, DatasetSettings, Documents, open_documents
from fsae.sources.shard import Part
from fsae.sources.tokens import PackedTokens
from tests.streams import ListedDocuments

SEPARATOR, BOS = 0, 27


class Alphabet:
    """a is 1, z is 26; 0 separates documents, 27 begins rows where `bos_id` says so; '?' is a special token, 28."""

    name = "alphabet"
    d_vocab = 29
    context_limit = 16
    separator_id = SEPARATOR
    # A tokenizer may have more special tokens than the model has ids.
    special_ids = frozenset({BOS, 28, 31})

    def __init__(self, bos_id: int | None = None, bos_token_id: int | None = BOS):
        self.bos_id, self.bos_token_id = bos_id, bos_token_id
        self.batches: list[int] = []

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        self.batches.append(len(texts))
        return [[28 if letter == "?" else ord(letter) - ord("a") + 1 for letter in text] for text in texts]

    def tokenise_chat(self, messages: Sequence[dict], roles: Sequence[str] | None) -> tuple[list[int], list[bool]]:
        """A BOS, and each message's text after its role's first letter; a message of a robot cannot be written."""
        ids, counts = [BOS], [roles is None]
        for message in messages:
            if message["role"] == "robot":
                raise UnwritableChat("has a robot in it")
            (name,), (text,) = self.tokenise([message["role"][0]]), self.tokenise([message["content"]])
            ids += [*name, *text]
            counts += [roles is None, *([roles is None or message["role"] in roles] * len(text))]
        return ids, counts


def letters(rows: torch.Tensor) -> list[str]:
    return ["".join("|" if i == SEPARATOR else "^" if i == BOS else chr(i + 96) for i in row) for row in rows.tolist()]


@pytest.fixture
def packed(tmp_path: Path):
    """Packs these documents; all of them are in the training part."""

    def pack(
        contents: list, vocabulary=None, *, rows=2, context=4, exclude=True, skip=0, repeat=False, bos=None, **others
    ) -> PackedTokens:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"it": content}) + "\n" for content in contents))
        column = "text_column"
        if not isinstance(contents[0], str):
            column = "chat_column" if isinstance(contents[0][0], dict) else "tokens_column"
        settings = DatasetSettings(
            format=DatasetFormat.json,
            path=str(tmp_path),
            held_out=1e-12,
            **cast(dict[str, Any], {column: "it"}),
        )
        return PackedTokens(
            open_documents(settings, Part.train),
            vocabulary or Alphabet(),
            rows=rows,
            context=context,
            skip_positions=skip,
            exclude_special_tokens=exclude,
            prepend_bos=bos,
            repeat=repeat,
            **others,
        )

    return pack


def test_documents_are_joined_by_separators_and_cut_into_rows(packed):
    # abc|de|fghi|  ->  abc| de|f ghi|  ->  blocks of two rows and of one
    blocks = [letters(tokens) for tokens, *_ in packed(["abc", "de", "fghi"])]
    assert blocks == [["abc|", "de|f"], ["ghi|"]]


def test_tokens_that_fill_no_row_are_left_out(packed):
    # abcde|fg|  is 9 ids: two rows of four, and one id too many.
    assert [letters(tokens) for tokens, *_ in packed(["abcde", "fg"])] == [["abcd", "e|fg"]]


def test_a_row_begins_with_bos_by_the_model_s_convention(packed):
    blocks = list(packed(["abcde", "fg"], Alphabet(bos_id=BOS), rows=5))
    assert [letters(tokens) for tokens, *_ in blocks] == [["^abc", "^de|", "^fg|"]]


@pytest.mark.parametrize("convention", [None, BOS])
@pytest.mark.parametrize(("wanted", "rows"), [(True, ["^abc", "^de|", "^fg|"]), (False, ["abcd", "e|fg"])])
def test_a_setting_overrides_the_model_s_convention(packed, convention, wanted, rows):
    text = packed(["abcde", "fg"], Alphabet(convention), rows=5, bos=wanted)
    assert text.prepends_bos is wanted
    assert letters(next(text).tokens) == rows


def test_a_bos_that_the_model_does_not_have_is_refused(packed):
    with pytest.raises(ValueError, match="prepend_bos is true, but the tokenizer of model alphabet has no BOS"):
        packed(["abc"], Alphabet(bos_token_id=None), bos=True)
    assert packed(["abc"], Alphabet(bos_token_id=None), bos=False).prepends_bos is False


@pytest.mark.parametrize(("wanted", "rows"), [(None, ["abcd"]), (False, ["abcd"]), (True, ["^abc"])])
def test_only_the_setting_adds_a_bos_to_tokenised_data(packed, wanted, rows):
    text = packed([[1, 2, 3, 4]], Alphabet(bos_id=BOS), bos=wanted)
    assert letters(next(text).tokens) == rows
    assert text.prepends_bos is bool(wanted)


def test_the_mask_leaves_out_special_tokens(packed):
    (tokens, keep, *_), *_ = packed(["abcde", "?g"], Alphabet(bos_id=BOS), rows=3)
    assert tokens.tolist() == [[27, 1, 2, 3], [27, 4, 5, 0], [27, 28, 7, 0]]
    assert keep.tolist() == [[False, True, True, True], [False, True, True, False], [False, False, True, False]]
    assert keep.dtype is torch.bool


def test_the_mask_can_keep_special_tokens(packed):
    (_, keep, *_), *_ = packed(["abcde", "?g"], Alphabet(bos_id=BOS), rows=3, exclude=False)
    assert keep.all()


def test_empty_documents_add_only_a_separator(packed):
    assert [letters(tokens) for tokens, *_ in packed(["ab", "", "c"])] == [["ab||"]]


def test_repeated_text_starts_again_within_a_row(packed):
    # abc|de| is 7 ids; rows of 4 go through it without a gap: abc| de|a bc|d e|ab c|de |abc ...
    text = packed(["abc", "de"], repeat=True)
    rows = []
    for _ in range(7):
        tokens, *_ = next(text)
        assert tokens.shape == (2, 4)
        rows += letters(tokens)
    assert "".join(rows) == ("abc|de|" * 8)
    # 56 ids are 8 epochs: the 8th was begun, so the text started again seven times.
    assert text.epoch == 7


def test_blocks_may_be_longer_than_the_text(packed):
    tokens, *_ = next(packed(["abc"], repeat=True, rows=5))
    assert letters(tokens) == ["abc|"] * 5


def test_the_mask_leaves_out_the_first_positions_of_each_row(packed):
    (_, keep, *_), *_ = packed(["abcdefg"], Alphabet(), rows=2, skip=2, exclude=False)
    assert keep.tolist() == [[False, False, True, True]] * 2


def test_token_ids_of_a_data_set_are_used_unchanged(packed):
    (tokens, keep, *_), *_ = packed([[1, 2, 3], [27, 5], [6, 7, 8]], Alphabet(bos_id=BOS))
    assert tokens.tolist() == [[1, 2, 3, 27], [5, 6, 7, 8]]
    assert keep.tolist() == [[True, True, True, False], [True] * 4]


def test_ids_to_leave_out_are_read_and_not_kept(packed):
    (tokens, keep, *_), *_ = packed(["abcabc"], exclude_tokens=[2, 3])
    assert letters(tokens) == ["abca"]
    assert keep.tolist() == [[True, False, False, True]]
    with pytest.raises(ValueError, match=r"dataset.exclude_tokens has 29, but model alphabet has the ids 0 to 28"):
        packed(["abc"], exclude_tokens=[1, 29])


@pytest.mark.parametrize(("bos_id", "opening"), [(None, "xy"), (BOS, "^xy")])
def test_each_row_begins_with_the_prefix_which_the_mask_leaves_out(bos_id, opening: str, packed):
    vocabulary = Alphabet(bos_id)
    # abcdefg| in rows of 4 letters after the opening.
    context = len(opening) + 4
    tokens, keep, documents, *_ = next(packed(["abc", "efg"], vocabulary, context=context, prefix="xy", exclude=False))
    assert letters(tokens) == [f"{opening}abc|", f"{opening}efg|"]
    # A BOS is kept here, as nothing leaves it out.
    assert keep.tolist() == [[True] * (bos_id is not None) + [False, False] + [True] * 4] * 2
    assert documents.tolist() == [[0] * context, [1] * context]


def test_a_prefix_that_fills_the_context_is_refused(packed):
    with pytest.raises(ValueError, match=r"dataset.prefix is 4 tokens long, which leaves none of the 4 positions"):
        packed(["abc"], prefix="wxyz")


def said(*words: str) -> list[dict]:
    return [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 5, words, strict=False)]


def test_chats_are_written_by_the_template(packed):
    # u and a stand for the roles; the template's own BOS is left out where rows have one.
    blocks = list(packed([said("bc", "de"), said("fgh", "ijk")], Alphabet(BOS), rows=4, context=6))
    assert "".join(letters(torch.cat([block.tokens[:, 1:] for block in blocks]))) == "ubcade|ufghaijk|"[:15]


def test_positions_of_other_roles_are_read_and_not_kept(packed):
    text = packed([said("bc", "de"), said("fgh", "ijk")], Alphabet(BOS), rows=3, context=6, chat_roles=["assistant"])
    tokens, keep, *_ = next(text)
    kept = "".join(letters(tokens[keep].unsqueeze(0)))
    assert kept == "deijk"
    assert "".join(letters(tokens[:, 1:])) == "ubcade|ufghaijk"


def test_chats_that_cannot_be_written_are_left_out_and_counted(packed):
    robot = [{"role": "robot", "content": "z"}]
    text = packed([said("bc", "de"), robot, said("fgh", "ijk")], Alphabet(BOS), rows=3, context=6)
    tokens, _, documents, *_ = next(text)
    assert "".join(letters(tokens[:, 1:])) == "ubcade|ufghaijk"
    assert documents.max() == 1
    assert text.skipped_rows == 1
    # Beyond the limit they are refused by their row.
    with pytest.raises(
        ValueError, match=r"a\.jsonl, line 11: column 'it' has a robot in it\. That makes 11 rows of 20"
    ):
        next(packed([robot] * 20, Alphabet(BOS), rows=3, context=6))


PADDING = [[*range(1, 1 + length), *[9] * (10 - length)] for length in (2, 4, 6, 8)]


@pytest.mark.parametrize("side", [1, -1])
def test_rows_that_look_padded_cause_one_warning(side: int, packed, caplog: pytest.LogCaptureFixture):
    text = packed([row[::side] for row in PADDING], repeat=True)
    for _ in range(12):
        next(text)
    # 8 + 6 + 4 + 2 of 40 ids.
    assert caplog.text.count(": 50 % of its token ids are runs of 9 at the beginning or the end of rows") == 1
    assert "dataset.exclude_tokens=[9]" in caplog.text
    # Held-out text is of the same kind.
    caplog.clear()
    next(packed([row[::side] for row in PADDING], repeat=False))
    next(packed([list(range(1, 11))] * 4, repeat=True))
    assert caplog.text == ""


def test_positions_from_repeated_text_are_not_distinct(packed):
    # abc|de| is 7 ids, two of them separators; rows of 4 pass over it repeatedly: abc| de|a bc|d
    text = packed(["abc", "de"], repeat=True, rows=1)
    assert [next(text).distinct for _ in range(4)] == [3, 2, 0, 0]
    # Also from a saved position on.
    text = packed(["abc", "de"], repeat=True, rows=1)
    next(text)
    resumed = packed(["abc", "de"], repeat=True, rows=1)
    resumed.load_state_dict(text.state_dict())
    assert [next(resumed).distinct for _ in range(2)] == [2, 0]


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("repeat", [False, True])
def test_text_continues_from_a_saved_position(packed, bos_id, repeat):
    contents = ["abcdefghijklmnopqrstuvwxyz"[i % 20 : i % 20 + i % 6] for i in range(40)]
    # A few documents at a time, so that positions in the middle of the data set occur.
    settings = {"vocabulary": Alphabet(bos_id), "rows": 3, "context": 5, "repeat": repeat, "batch_characters": 20}

    def blocks(text: PackedTokens, count: int) -> list[torch.Tensor]:
        return [tokens for (tokens, *_), _ in zip(text, range(count), strict=False)]

    for done in range(0, 12, 3):
        text = packed(contents, **settings)
        blocks(text, done)
        # As a checkpoint would hold it.
        file = io.BytesIO()
        torch.save(text.state_dict(), file)
        file.seek(0)
        rest = blocks(text, 6)
        resumed = packed(contents, **settings)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        again = blocks(resumed, 6)
        assert len(rest) == len(again)
        assert all(torch.equal(a, b) for a, b in zip(rest, again, strict=True))
        assert resumed.epoch == text.epoch
        assert not repeat or len(rest) == 6


def test_a_saved_position_holds_no_text(packed):
    text = packed(["abcdefghijklmnopq" * 50], repeat=True)
    state = text.state_dict()
    first = next(text)[0]
    text.load_state_dict(state)
    assert torch.equal(next(text)[0], first)
    # 843 of its 851 tokens wait; 8 are used.
    assert text.state_dict()["used"] == 8
    assert len(json.dumps(text.state_dict())) < 300


def test_a_finished_text_can_be_read_again_from_its_start(packed):
    text = packed(["abcdefgh"])
    start = text.state_dict()
    first = [letters(tokens) for tokens, *_ in text]
    assert next(text, None) is None
    text.load_state_dict(start)
    assert [letters(tokens) for tokens, *_ in text] == first


def test_documents_are_tokenised_in_batches(packed):
    vocabulary = Alphabet()
    list(packed(["abcd"] * 7, vocabulary, batch_characters=10))
    # Three of four letters reach ten; 3 + 3 + 1, and nothing at the end.
    assert [size for size in vocabulary.batches if size] == [3, 3, 1]


@pytest.mark.parametrize("repeat", [False, True])
def test_text_shorter_than_one_row_is_refused(packed, repeat):
    with pytest.raises(ValueError, match=": its whole text is 4 tokens, shorter than one context of 6; use more"):
        next(packed(["a", "b"], context=6, repeat=repeat))


def test_a_context_beyond_the_models_limit_is_refused(packed):
    with pytest.raises(ValueError, match=r"dataset.context is 17, but model alphabet takes at most 16 tokens"):
        packed(["abc"], context=17)


@pytest.mark.parametrize("wrong", [29, -1])
def test_token_ids_of_another_tokenizer_are_refused(packed, wrong):
    with pytest.raises(ValueError, match=f" holds the token id {wrong}, but model alphabet has 29 ids"):
        next(packed([[1, 2, 3], [4, wrong]]))


def test_each_token_has_the_number_of_its_document(packed):
    text = packed(["abc", "de", "fghi"], Alphabet(bos_id=BOS), rows=1)
    # ^abc ^|de ^|fg: a BOS is counted to what follows it, a separator to what it ends; "hi|" fills no row... of two.
    assert [block.documents.tolist() for block in text] == [[[0, 0, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 2, 2]], [[2] * 4]]


def test_document_numbers_restart_with_the_text(packed):
    text = packed(["abc", "de"], rows=1, repeat=True)
    # abc| de|a bc|d e|ab
    assert [next(text).documents.tolist()[0] for _ in range(4)] == [[0] * 4, [1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]


def labelled(labels: list, rows: int = 1) -> PackedTokens:
    documents = cast(Documents, ListedDocuments(["abc"] * len(labels), labels))
    return PackedTokens(
        documents, Alphabet(), rows=rows, context=4, skip_positions=0, exclude_special_tokens=True, repeat=False
    )


@pytest.mark.parametrize(
    ("labels", "found", "names"),
    [
        ([1, 0, 7], [1, 0, 7], []),
        ([True, False, None], [1, 0, -1], []),
        (["cat", "dog", "cat"], [0, 1, 0], ["cat", "dog"]),
    ],
)
def test_labels_stay_with_their_tokens(labels: list, found: list[int], names: list[str]):
    text = labelled(labels)
    assert [block.labels.tolist() for block in text] == [[[label] * 4] for label in found]
    assert text.label_names == names
    # Also from a position on: what a name stands for does not change.
    resumed = labelled(labels)
    next(resumed)
    state = resumed.state_dict()
    other = labelled(labels)
    other.load_state_dict(state)
    assert [block.labels.tolist() for block in other] == [[[label] * 4] for label in found[1:]]
    assert other.label_names == names


def test_labels_that_are_neither_numbers_nor_text_are_refused():
    with pytest.raises(ValueError, match=r"listed has the label 0\.5; labels are whole numbers or text"):
        next(labelled([0.5]))


def test_a_language_model_is_a_vocabulary(packed):
    from fsae.language_models.settings import Package
    from tests.language_models.conftest import opened

    model = opened(Package.tiny)
    tokens, keep, *_ = next(packed(["def f(): pass", "x = 1"], model, rows=1, context=16))
    assert model._tokenizer.decode(tokens[0].tolist()) == "def f(): pass<|endoftext|>x "
    assert keep[0].tolist() == [True] * 13 + [False] + [True] * 2
