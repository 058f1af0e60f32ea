from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.concepts import Concepts
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.sites import Site
from tests.evaluation.downstream.texts import Text

# Each concept has four words of its own and a dimension of the activations; other words have none.
CONCEPTS = ("birds", "ships")
OWN = {"birds": ["owl", "crow", "swan", "finch"], "ships": ["brig", "yacht", "ferry", "canoe"]}
OTHERS = [f"word{i}" for i in range(24)]
WORDS = ["<s>", "<end>", *OWN["birds"], *OWN["ships"], *OTHERS]
D_IN = 6


class WordModel:
    """A model whose tokens are words, and whose activations depend on their own token alone."""

    name = "words"
    context_limit = 64
    bos_token_id = 0
    separator_id = 1
    special_ids = frozenset({0, 1})

    def __init__(self):
        self.table = 0.2 * torch.randn(len(WORDS), D_IN, generator=torch.Generator().manual_seed(0))
        self.table[:, :2] = 0
        for dimension, concept in enumerate(CONCEPTS):
            for word in OWN[concept]:
                self.table[WORDS.index(word), dimension] = 2.0

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[WORDS.index(word) for word in text.split()] for text in texts]

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return dict.fromkeys(sites, self.table[tokens])


def texts_of(draw: torch.Generator) -> list[tuple[str, str, str, str, int]]:
    """Rows in AxBench's layout: a hard negative is a word of another concept."""

    def text(*own: str) -> str:
        others = [OTHERS[int(torch.randint(len(OTHERS), (), generator=draw))] for _ in range(8)]
        place = 1 + int(torch.randint(7, (), generator=draw))
        return " ".join([*others[:place], *own, *others[place:]])

    rows = []
    for number, concept in enumerate(CONCEPTS):
        other = CONCEPTS[1 - number]
        for i in range(16):
            rows.append(("", text(OWN[concept][i % 4]), concept, "positive", number))
            rows.append(("", text(), concept, "negative", number))
        rows += [("", text(OWN[other][i]), concept, "hard negative", number) for i in range(4)]
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts")
    names = ("input", "output", "output_concept", "category", "concept_id")
    columns = zip(*texts_of(torch.Generator().manual_seed(1)), strict=True)
    table = pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
    pyarrow.parquet.write_table(table, path / "all.parquet")
    return path


def dictionary(knows: bool = True) -> Autoencoder:
    """A latent per dimension; one that knows no concept has none of the first two dimensions."""
    autoencoder = StandardSettings(d_sae=2 * D_IN).build(D_IN, torch.Generator()).eval()
    rows = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    if not knows:
        rows = rows.roll(2, dims=1) * (torch.arange(D_IN) >= 2)
        rows[[0, 1, D_IN, D_IN + 1]] = torch.eye(D_IN)[2]
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
        autoencoder.b_dec.zero_()
        autoencoder.get_parameter("b_enc").zero_()
    return autoencoder


def settings(folder: Path, **changes: Any) -> Concepts:
    return Concepts(**{"path": str(folder), "splits": 2, **changes})


def measured(evaluation: Concepts, *autoencoders: Autoencoder) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    text = Text()
    text.model = cast(Any, WordModel())

    class Source:
        unit = "tokens"

    source = Source()
    cast(Any, source).text = text
    found = evaluation.measure(Subject([Examined([each]) for each in autoencoders], cast(Any, source)))
    return [dict(each.numbers[0]) for each in found], [each.content["concepts"][0] for each in found]


def test_a_planted_latent_detects_its_concept_and_is_not_misled(folder: Path):
    (numbers, without), (concepts, _) = measured(settings(folder), dictionary(), dictionary(knows=False))
    assert numbers["concepts_auroc"] == 1
    assert numbers["concepts_auroc_noise"] == 0
    assert numbers["concepts_hard"] == 1
    assert [concepts[name]["latent"] for name in CONCEPTS] == [0, 1]
    assert numbers["concepts_auroc_diffmean"] > 0.9
    # Latents of other dimensions were chosen on half of the texts and are at chance on the others.
    assert without["concepts_auroc"] == pytest.approx(0.5, abs=0.15)
    assert without["concepts_auroc_probe"] == numbers["concepts_auroc_probe"]
    assert numbers["concepts_count"] == 2
    assert numbers.keys() == Concepts.meanings.keys()


def test_too_few_texts_are_refused_before_the_model_runs(folder: Path, tmp_path: Path):
    table = pyarrow.parquet.read_table(folder / "all.parquet").slice(0, 12)
    pyarrow.parquet.write_table(table, tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"eval\.concepts: concept 'birds' has 6 positive texts, and 8 are needed"):
        measured(settings(tmp_path), dictionary())
    with pytest.raises(ValueError, match=r"eval\.concepts: eval\.concepts\.path: .*matches no parquet file|no file"):
        measured(settings(tmp_path / "none"), dictionary())
