from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.code import Code
from fsae.language_models.sites import Site
from fsae.sources.documents import DatasetFormat
from tests.evaluation.downstream.texts import BOS, Text, subject_on

D_IN = 8
VOCABULARY = 256
# Characters inside a string, for which the model below has a direction that characters outside do not have.
QUOTE = ord('"')


class StringModel:
    """A model whose tokens are characters and that knows which of them are between quotes."""

    name = "strings"
    context_limit = 512
    bos_token_id = BOS
    separator_id = 1
    special_ids = frozenset({BOS, 1})
    device = torch.device("cpu")

    def __init__(self):
        self.table = 0.1 * torch.randn(VOCABULARY, D_IN, generator=torch.Generator().manual_seed(0))
        # Within a string it expects the characters of strings.
        self.unembedding = torch.zeros(D_IN, VOCABULARY)
        self.unembedding[0, list(b'fabc "')] = 1.0

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("latin-1")) for text in texts]

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[(place, place + 1) for place in range(len(text))] for text in texts]

    def _vectors(self, tokens: Tensor) -> Tensor:
        vectors = self.table[tokens].clone()
        quotes = tokens == QUOTE
        vectors[..., 0] += 3 * ((quotes.cumsum(1) % 2 == 1) & ~quotes)
        return vectors

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return dict.fromkeys(sites, self._vectors(tokens))

    def check_splice(self, site: Site) -> None:
        pass

    def logits(self, tokens: Tensor, *replacements: tuple[Site, Callable[[Tensor], Tensor]]) -> Tensor:
        x = self._vectors(tokens)
        for _, function in replacements:
            x = function(x)
        return x @ self.unembedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in which the same letters are inside and outside of strings."""
    path = tmp_path_factory.mktemp("code")
    for number in range(12):
        lines = [f'def fab{number % 5}(abc):\n    return abc + "fab abc cab"  # cab' for _ in range(8)]
        (path / f"{number}.py").write_text("\n\n".join(lines) + f"\nx = {number}\n")
    return path


def settings(folder: Path, **changes: Any) -> Code:
    own = {"format": DatasetFormat.text, "path": str(folder / "*.py"), "passages": 60, "characters": 150, "spliced": 4}
    return Code(**{**own, "splits": 2, **changes})


def detector() -> Autoencoder:
    """A latent of the direction that only characters inside strings have, and the identity."""
    autoencoder = StandardSettings(d_sae=2 * D_IN).build(D_IN, torch.Generator()).eval()
    rows = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
        autoencoder.b_dec.zero_()
        autoencoder.get_parameter("b_enc").zero_()
    return autoencoder


def measured(
    evaluation: Code, *autoencoders: Autoencoder, kept_in: Path | None = None
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    text = Text(kept_in)
    text.model = cast(Any, StringModel())
    found = evaluation.measure(subject_on(text, autoencoders))
    return [dict(each.numbers[0]) for each in found], [each.content["code_types"][0] for each in found]


def test_a_planted_latent_detects_strings_beyond_their_tokens(folder: Path):
    (numbers,), (types,) = measured(settings(folder), detector())
    assert types["string_content"]["latent"] == 0
    assert types["string_content"]["f1"] > 0.95
    assert types["string_content"]["f1_token"] < 0.8
    # Reconstruction is exact, so nothing is lost.
    assert numbers["code_ce_recovered"] == pytest.approx(1)
    assert types["identifier"]["ce_spliced"] == pytest.approx(types["identifier"]["ce"], rel=1e-4)
    assert numbers.keys() == Code.meanings.keys()


def test_the_same_seed_gives_the_same_numbers(folder: Path):
    evaluation = settings(folder, spliced=0)
    first, second = measured(evaluation, detector(), detector())[0]
    assert first == second
    assert "code_ce_recovered" not in first


def test_files_that_are_not_there_or_do_not_parse_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"eval\.code\.path: .*matches no text file"):
        measured(settings(tmp_path / "none"), detector())
    for number in range(5):
        (tmp_path / f"{number}.py").write_text("def (:\n")
    with pytest.raises(ValueError, match="found 0 passages in 0 files that parse as python"):
        measured(settings(tmp_path), detector())


def test_too_few_nodes_are_refused(folder: Path):
    with pytest.raises(ValueError, match=r"no type of syntax node is at 100000 tokens"):
        measured(settings(folder, least=100_000), detector())


def test_a_further_dictionary_shares_the_losses_without_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read, logits = list[int](), StringModel.logits
    monkeypatch.setattr(StringModel, "logits", lambda model, *arguments: read.append(1) or logits(model, *arguments))
    evaluation, passes = settings(folder, spliced=3, splits=1), []
    for kept_in in (None, tmp_path, tmp_path):
        read.clear()
        found = measured(evaluation, detector(), kept_in=kept_in)
        passes.append((len(read), found))
    assert passes[0][1] == passes[1][1] == passes[2][1]
    assert [count for count, _ in passes] == [9, 9, 3]
