"""Whole evaluations of fsae, sae-probes and SAEBench agree on the same activations and the same dictionary.

Both sides draw rows of their own. The tolerances are those of SAEBench's acceptance tests (tests/acceptance of version
0.6): 0.04 for sparse probing and TPP, 0.08 for SCR, 0.06 for absorption. sae-probes has no such test, and gets the
tolerance of probing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.absorption import Absorption
from fsae.evaluation.downstream.k_sparse import Protocol
from fsae.evaluation.downstream.letter_probes import letter_probes
from fsae.evaluation.downstream.packaged_texts import packaged_texts
from fsae.evaluation.downstream.probe import Probe
from fsae.evaluation.downstream.probe_ablation import DecodedTexts, ProbedRows, decoded, trained_probes
from fsae.evaluation.downstream.text_activations import Positions, Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import mean_vectors, token_codes
from fsae.evaluation.probing import Probing, ProbingData
from fsae.evaluation.scr import scr_scores
from fsae.evaluation.tpp import class_rows, tpp_scores
from fsae.language_models.sites import Site
from tests.evaluation.downstream.texts import SEPARATOR, CharacterModel, Text, subject_on
from tests.peers.sae_bench_side import (
    ABLATED,
    CLASSES,
    HOOK,
    MODEL,
    MOST_LATENTS,
    SCARCE,
    SETS,
    TEST,
    TOP,
    TOP_OF_SAEBENCH,
    TRAIN,
)  # fmt: skip

pytestmark = pytest.mark.peers

D_IN, D_SAE = 32, 64
PROBING, TPP, SCR, ABSORPTION = 0.04, 0.04, 0.08, 0.06
TOKENS = 6


class Letters(CharacterModel):
    """Activations of bytes: the last two, and the mean of all pairs."""

    context_limit = 8192

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.single = 0.5 * torch.randn(256, D_IN // 2, generator=generator)
        self.pairs = 8 * torch.randn(4096, D_IN // 2, generator=generator)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*text.encode()] for text in texts]

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        before = torch.cat([torch.full_like(tokens[:, :1], SEPARATOR), tokens[:, :-1]], dim=1)
        steps = torch.arange(1, tokens.shape[1] + 1)[None, :, None]
        means = self.pairs[(before * 31 + tokens) % len(self.pairs)].cumsum(1) / steps
        found = torch.cat([self.single[tokens] + 0.5 * self.single[before], means], dim=2)
        return dict.fromkeys(sites, found)


def some_text() -> Any:
    text = Text(None, prepends_bos=False)
    text.model = Letters()
    return text


def dictionary(d_in: int = D_IN, d_sae: int = D_SAE) -> Autoencoder:
    """A dictionary with unit rows in which zeros switch nothing on, as SAEBench's padding needs it."""
    made = StandardSettings(d_sae=d_sae).build(d_in, torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        made.b_dec.zero_()
        made.get_parameter("b_enc").fill_(-0.2)
    made.normalise_decoder()
    return made


def save_dictionary(autoencoder: Autoencoder, path: Path) -> None:
    weights = {name: getattr(autoencoder, name).detach().contiguous() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    save_file(weights, path)


def padded(read: TextActivations) -> Tensor:
    """Return (texts, tokens, d_in) with zeros behind a text, which SAEBench takes for padding."""
    return torch.nn.utils.rnn.pad_sequence(list(read.vectors.split(read.starts.diff().tolist())), batch_first=True)


def labelled_letters(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """Texts of three classes that prefer letters of their own."""
    generator = np.random.default_rng(0)
    texts = {
        name: ["".join(generator.choice(list("abcdefghijkl"), size=10, p=weights)) for _ in range(900)]
        for name, weights in zip(CLASSES[:3], generator.dirichlet(np.full(12, 2.0), size=3), strict=True)
    }
    path = folder / "letters.jsonl"
    rows = [{"text": text, "label": name} for name, own in texts.items() for text in own]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path, texts


def tokens_of(means: np.ndarray, generator: np.random.Generator) -> TextActivations:
    """Return texts of a few tokens around the means."""
    vectors = np.repeat(means, TOKENS, axis=0) + generator.normal(size=(len(means) * TOKENS, means.shape[1]))
    starts = torch.arange(len(means) + 1) * TOKENS
    ids = torch.zeros(len(vectors), dtype=torch.long)
    return TextActivations(torch.from_numpy(vectors).float(), ids, ids, starts)


def some_classes() -> tuple[TextActivations, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 500)
    return tokens_of(0.35 * generator.normal(size=(5, D_IN))[labels], generator), labels


def some_pairs() -> tuple[TextActivations, np.ndarray]:
    """Texts of two attributes, the second of which is easier to see."""
    generator = np.random.default_rng(2)
    attributes = np.repeat(np.array([(1, 1), (1, 0), (0, 1), (0, 0)]), [1200, 600, 600, 1200], axis=0)
    return tokens_of((2 * attributes - 1) @ attribute_directions(), generator), attributes


def attribute_directions() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(2, D_IN)) * np.array([[0.08], [0.15]])


def dictionary_of_pairs() -> Autoencoder:
    """A dictionary with a latent for each value of each attribute, so that SCR is large."""
    made = dictionary()
    rows = attribute_directions() / np.linalg.norm(attribute_directions(), axis=1, keepdims=True)
    with torch.no_grad():
        made.W_dec[:4] = torch.from_numpy(np.concatenate([rows, -rows]))
        made.W_enc[:, :4] = made.W_dec[:4].T
    return made


def some_words() -> tuple[np.ndarray, np.ndarray, Autoencoder]:
    """Words of 26 letters, and a dictionary with a main latent per letter, which five others absorb in some words."""
    generator = np.random.default_rng(3)
    d_in, per_letter, absorbers = 160, 100, 5
    axes = np.linalg.qr(generator.normal(size=(d_in, d_in)))[0]
    directions, special = axes[:26], axes[26 : 26 * (1 + absorbers)].reshape(26, absorbers, d_in)
    letters = np.repeat(np.arange(26), per_letter)
    # Each of the five takes over one word in twenty.
    kind = np.tile(np.arange(per_letter) % 20, 26)
    vectors = 3 * directions[letters] + 0.15 * generator.normal(size=(len(letters), d_in))
    for absorber in range(absorbers):
        vectors[kind == absorber] += 3 * special[letters[kind == absorber], absorber]
    made = dictionary(d_in, 512)
    with torch.no_grad():
        made.W_dec[:26] = torch.from_numpy(directions)
        made.W_enc[:, :26] = torch.from_numpy((directions - special.sum(1)).T)
        absorbing = slice(26, 26 * (1 + absorbers))
        made.W_dec[absorbing] = torch.from_numpy((directions[:, None] + special).reshape(-1, d_in) / 2**0.5)
        made.W_enc[:, absorbing] = torch.from_numpy(special.reshape(-1, d_in).T)
        made.get_parameter("b_enc")[: absorbing.stop] = -1.0
    return vectors.astype(np.float32), letters, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def theirs(sae_bench, folder: Path) -> dict[str, Any]:
    """Write activations and dictionaries, and return the other libraries' results."""
    save_dictionary(dictionary(), folder / "sae.safetensors")
    cache = folder / "cache" / f"model_activations_{MODEL}"
    cache.mkdir(parents=True)
    reading = Reading(positions=Positions.last, tokens=4096, from_end=True)
    for name in SETS:
        read = text_activations(some_text(), packaged_texts(name).texts, reading, name)
        torch.save(read.vectors, cache / f"{name}_{HOOK}.pt")
    _, texts = labelled_letters(folder)
    of_classes = {name: padded(text_activations(some_text(), own, Reading(), name)) for name, own in texts.items()}
    parts = {
        part: {name: own[rows].contiguous() for name, own in of_classes.items()}
        for part, rows in (("train", slice(0, 400)), ("test", slice(400, 900)))
    }
    torch.save({**parts, "llm_results": {}}, folder / "letters.pt")

    classes, labels = some_classes()
    of_class = {name: padded(classes)[labels == label] for label, name in enumerate(CLASSES)}
    torch.save(
        [{name: own[:300] for name, own in of_class.items()}, {name: own[300:] for name, own in of_class.items()}],
        folder / "classes.pt",
    )
    pairs, attributes = some_pairs()
    torch.save([padded(pairs), torch.from_numpy(attributes)], folder / "pairs.pt")
    save_dictionary(dictionary_of_pairs(), folder / "pairs_sae.safetensors")
    vectors, letters, made = some_words()
    save_dictionary(made, folder / "words_sae.safetensors")
    train, test = split_of(letters)
    torch.save([torch.from_numpy(vectors), torch.from_numpy(letters), train, test], folder / "words.pt")
    sae_bench("evaluations", folder, folder / "out.json")
    return json.loads((folder / "out.json").read_text())


def split_of(letters: np.ndarray) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(4).permutation(len(letters)).tolist()
    test = len(order) // 5
    return sorted(order[test:]), sorted(order[:test])


@pytest.fixture(scope="module")
def of_sae_probes() -> dict[str, Any]:
    """fsae's probing of sae-probes' data sets, by data set."""
    evaluation = Probing(
        sets=list(SETS), k=list(TOP), train=1024, test=2000, scarce=[SCARCE], text_tokens=4096, repeats=2
    )
    (found,) = evaluation.measure(subject_on(some_text(), [dictionary()]))
    return found.content["probing_sets"][0]


@pytest.mark.parametrize("name", SETS)
def test_probing_is_sae_probes_run_in_its_normal_setting(theirs, of_sae_probes, name: str):
    expected = theirs["sae_probes"][name]["normal"]
    assert max(expected) > 0.6
    np.testing.assert_allclose(of_sae_probes[name]["latents"]["normal"], expected, atol=PROBING)


@pytest.mark.parametrize("name", SETS)
def test_probing_is_sae_probes_run_with_few_rows(theirs, of_sae_probes, name: str):
    mine = of_sae_probes[name]["latents"][f"scarce {SCARCE}"][TOP.index(16)]
    # Each side draws its own training rows, and with few rows that alone moves the score.
    assert mine == pytest.approx(theirs["sae_probes"][name]["scarcity"], abs=2 * PROBING)


def test_probing_by_saebench_s_protocol_is_its_sparse_probing(theirs, folder: Path):
    path, _ = labelled_letters(folder)
    evaluation = Probing(
        data=ProbingData.files,
        path=str(path),
        protocol=Protocol.saebench,
        k=list(TOP_OF_SAEBENCH),
        train=800,
        test=1000,
    )
    (found,) = evaluation.measure(subject_on(some_text(), [dictionary()]))
    for k in TOP_OF_SAEBENCH:
        expected = theirs["sparse_probing"][f"sae_top_{k}_test_accuracy"]
        assert 0.55 < expected < 0.98
        assert found.numbers[0][f"probing_accuracy_k{k}"] == pytest.approx(expected, abs=PROBING)


def as_decoded(read: TextActivations, autoencoder: Autoencoder) -> DecodedTexts:
    return decoded(autoencoder, read, mean_vectors(read).astype(np.float64), token_codes(autoencoder, read))


def test_tpp_is_saebench_s(theirs):
    read, labels = some_classes()
    texts, scores = as_decoded(read, dictionary()), []
    for repeat in range(3):
        rows = class_rows(labels, 300, 200, repeat)
        probes = trained_probes(texts.vectors, rows, [10 * repeat + each for each in range(5)])
        scores.append(tpp_scores(texts, named(probes), named(rows), ABLATED)["tpp"])
    for place, count in enumerate(ABLATED):
        expected = theirs["tpp"][f"tpp_threshold_{count}_total_metric"]
        assert np.mean(scores, axis=0)[place] == pytest.approx(expected, abs=TPP)
    assert theirs["tpp"][f"tpp_threshold_{ABLATED[-1]}_total_metric"] > 2 * TPP


def named(items: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(CLASSES, items, strict=True))


def pair_rows_as_theirs(attributes: np.ndarray) -> dict[str, ProbedRows]:
    """The rows that SAEBench's side takes: the first ones of each quadrant."""
    first = {quadrant: np.flatnonzero((attributes == quadrant).all(1)) for quadrant in ((1, 1), (1, 0), (0, 1), (0, 0))}
    balanced = [
        np.concatenate([own[:TRAIN] for own in first.values()]),
        np.concatenate([own[-TEST:] for own in first.values()]),
    ]
    agreeing = [first[1, 1], first[0, 0]]
    biased = [
        np.concatenate([own[: 2 * TRAIN] for own in agreeing]),
        np.concatenate([own[-2 * TEST :] for own in agreeing]),
    ]
    return {
        name: ProbedRows(*rows, *(attributes[each, place] for each in rows))
        for name, place, rows in (("first", 0, balanced), ("second", 1, balanced), ("biased", 0, biased))
    }


def test_scr_of_saebench_s_probes_is_its_own(theirs):
    read, attributes = some_pairs()
    probes = {name: Probe(np.array(weights), bias, 1.0, 1.0) for name, (weights, bias) in theirs["scr_probes"].items()}
    found = scr_scores(as_decoded(read, dictionary_of_pairs()), probes, pair_rows_as_theirs(attributes), ABLATED)
    for direction in (1, 2):
        expected = [theirs["scr"][f"scr_dir{direction}_threshold_{count}"] for count in ABLATED]
        # One text of 800 on the other side of the boundary, by rounding, over the difference of two accuracies.
        np.testing.assert_allclose(found[f"dir{direction}"], expected, atol=0.03)
    expected = [theirs["scr"][f"scr_metric_threshold_{count}"] for count in ABLATED]
    np.testing.assert_allclose(found["scr"], expected, atol=0.03)
    assert max(expected) > 2 * SCR


def test_scr_with_probes_of_our_own_is_saebench_s(theirs):
    read, attributes = some_pairs()
    texts, rows = as_decoded(read, dictionary_of_pairs()), pair_rows_as_theirs(attributes)
    scores = []
    for seed in range(3):
        trained = trained_probes(texts.vectors, [rows[name] for name in ("first", "second")], [seed, seed + 10])
        (biased,) = trained_probes(texts.vectors, [rows["biased"]], [seed + 20])
        probes = {"first": trained[0], "second": trained[1], "biased": biased}
        scores.append(scr_scores(texts, probes, rows, ABLATED)["scr"])
    expected = [theirs["scr"][f"scr_metric_threshold_{count}"] for count in ABLATED]
    np.testing.assert_allclose(np.mean(scores, axis=0), expected, atol=SCR)


def test_absorption_is_saebench_s(theirs):
    vectors, letters, made = some_words()
    train, test = (np.array(each) for each in split_of(letters))
    words = len(letters)
    read = TextActivations(
        torch.from_numpy(vectors), torch.arange(words), torch.zeros(words, dtype=torch.long), torch.arange(words + 1)
    )
    probes = letter_probes(vectors, letters, train, test)
    (scores,) = Absorption(max_k=MOST_LATENTS)._scores(
        made, token_codes(made, read), read, letters, [probes], lambda: None
    )
    expected = theirs["absorption"]
    assert np.mean([each.fraction for each in scores]) == pytest.approx(expected["fraction"], abs=ABSORPTION)
    assert np.mean([each.full for each in scores]) == pytest.approx(expected["full"], abs=ABSORPTION)
    assert np.mean([each.splits for each in scores]) == pytest.approx(expected["splits"], abs=ABSORPTION)
    assert expected["fraction"] > 2 * ABSORPTION
