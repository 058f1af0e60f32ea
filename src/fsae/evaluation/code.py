"""`code`: whether latents detect syntax beyond the token itself, and what reconstruction costs by type of node."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.controls import densities_in, random_directions
from fsae.evaluation.downstream.node_types import best_latents, of_identity, purities
from fsae.evaluation.downstream.syntax import Language, Passage, passages
from fsae.evaluation.downstream.text_activations import Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import token_codes
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import Tensors, digest_of_texts, keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.language_models.transformer_lens import Replacement
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, SEED, between
from fsae.seeds import generator_for
from fsae.sources.documents import DatasetFormat, DatasetSettings, open_documents
from fsae.sources.shard import Part
from fsae.sources.source import HeldOutText

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_CONTROLS = {"random": "random directions", "token": "the best rule on the token alone"}
# The most tokens of a passage that are read.
_TOKENS = 192
# Passages of one file, at most, so that no file fills the sample.
_OF_A_FILE = 20
# A share of files that holds none.
_NEXT_TO_NONE = 1e-12
# The F1 from which a latent detects a type.
_DETECTED = 0.5


class _Tokens(NamedTuple):
    """Tokens whose syntax is known.

    Attributes:
        read: their activations.
        names: the types that count.
        types: (tokens, types), 1 for each type of a node that a token is in.
        leaves: number of the type of each token's leaf, among all types of leaves.
        files: number of each token's file.
    """

    read: TextActivations
    names: list[str]
    types: "csr_array"
    leaves: Int[np.ndarray, " tokens"]
    files: Int[np.ndarray, " tokens"]


@dataclass(frozen=True, kw_only=True)
class Code(Evaluation, group="eval.code"):
    """Latents as detectors of the types of syntax nodes, and cross-entropy by type of node.

    A token has the types of all named nodes of the syntax tree that it is in. For each type that is frequent enough,
    the latent and the threshold with the greatest F1 are chosen on half of the files, and the F1 on the other half
    counts. Much of it may be due to the token alone: `return` is a token and a node. So the F1 of the best rule on the
    token's identity is next to it, and `code_beyond_token` is the mean difference. The purity of a latent is
    1 - H(type of leaf | its mass) / log(types).

    Cross-entropy by type of the predicted token's leaf (ASTxplainer, arXiv 2308.03873): of the model, with the
    reconstruction in place of the activations, and with zeros. What is recovered is (zeros - reconstruction) /
    (zeros - model). `code_types` in results.json has all numbers of each type.

    Attributes:
        language: of the files.
        format: of the files, as `dataset.format`. The standard library of the running Python is the default; of it and
            of hub data sets, the part held out from training is read.
        path: a folder, a glob or a hub name, as `dataset.path`.
        data_dir, column: of a data set on the hub or in files, as `dataset.data_dir` and `dataset.text_column`.
        passages: passages that are read, at most.
        characters: of a passage, about.
        spliced: passages on which the model runs with the reconstruction; 0 for none.
        splits: divisions of the files into halves; their standard deviation is the noise.
        least: tokens of a type that both halves must have.
        seed: of the choice of passages and of the divisions.
    """

    language: Language = Language.python
    format: DatasetFormat = DatasetFormat.python_source
    path: str | None = None
    data_dir: str | None = None
    column: str | None = None
    passages: int = field(default=600, metadata=between(least=20, most=1_000_000))
    characters: int = field(default=400, metadata=between(least=40, most=100_000))
    spliced: int = field(default=48, metadata=between(least=0, most=1_000_000))
    splits: int = field(default=3, metadata=between(least=1, most=100))
    least: int = field(default=50, metadata=COUNT)
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("code_f1", Meaning("best latent's F1 per type of syntax node", better=Better.more), _CONTROLS),
        **accompanied(
            "code_beyond_token",
            Meaning("code_f1 minus that of token identity", better=Better.more),
            {"random": "random directions"},
        ),
        **accompanied(
            "code_coverage",
            Meaning(f"share of node types with an F1 of {_DETECTED}", better=Better.more, shown=Shown.files),
            _CONTROLS,
        ),
        **accompanied(
            "code_purity",
            Meaning("purity of latents in types of leaves", better=Better.more, shown=Shown.files),
            {"random": "random directions"},
            noise=False,
        ),
        "code_ce_recovered": Meaning("cross-entropy of code recovered", better=Better.more, shown=Shown.files),
        "code_node_types": Meaning("node types that are frequent enough", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and those of each type of node.

        Raises:
            ValueError: too few files can be parsed, or no type is frequent enough.
        """
        text = subject.source.text
        assert text is not None
        chosen = self._passages()
        tokens = self._tokens(text, chosen, subject)
        progress = Progress("comparing latents with syntax", 2 * len(subject.autoencoders), "dictionaries")
        halves = [self._half(tokens.files, split) for split in range(self.splits)]
        ids = tokens.read.ids.numpy()
        by_token = np.array([of_identity(ids, tokens.types, half) for half in halves])
        found = []
        for autoencoder in subject.autoencoders:
            codes = token_codes(autoencoder, tokens.read, subject.heartbeat)
            own = self._detection(codes, tokens, halves)
            progress.advance(1)
            control = random_directions(autoencoder, densities_in(codes), tokens.read.vectors, self.seed)
            controlled = None
            if control is not None:
                codes = token_codes(control, tokens.read, subject.heartbeat)
                controlled = self._detection(codes, tokens, halves)
            progress.advance(1)
            found.append((own, controlled))
        progress.close()
        costs = self._costs(text, chosen[: self.spliced], subject) if self.spliced else [{} for _ in found]
        measured = [
            (_numbers(own, controlled, by_token) | _recovered(cost), _by_type(own, by_token, tokens, cost))
            for (own, controlled), cost in zip(found, costs, strict=True)
        ]
        return [
            Measured([numbers for numbers, _ in own], content={"code_types": [types for _, types in own]})
            for own in subject.by_run(measured)
        ]

    def _passages(self) -> list[Passage]:
        # Files that the user names are for this evaluation alone: all of them are read.
        named = self.format not in (DatasetFormat.python_source, DatasetFormat.hub)
        try:
            dataset = DatasetSettings(
                format=self.format,
                path=self.path,
                data_dir=self.data_dir,
                text_column=self.column,
                held_out=_NEXT_TO_NONE if named else DatasetSettings.held_out,
            )
            documents = open_documents(dataset, Part.train if named else Part.held_out)
        except ValueError as error:
            text = str(error).replace("dataset.text_column", "eval.code.column").replace("dataset.", "eval.code.")
            raise ValueError(text) from None
        found: list[Passage] = []
        # More files than are needed are looked at, so that the passages are from many.
        per_file: Counter[int] = Counter()
        contents = (each.content for each in documents)
        texts = (each for each in contents if isinstance(each, str))
        for passage in passages(islice(texts, 20 * self.passages), self.language, self.characters):
            if per_file[passage.file] < _OF_A_FILE and passage.text.strip():
                per_file[passage.file] += 1
                found.append(passage)
            if len(found) >= 4 * self.passages:
                break
        if len(per_file) < 4 or len(found) < 20:
            raise ValueError(
                f"eval.code found {len(found)} passages in {len(per_file)} files that parse as {self.language.name}; "
                "name more files with eval.code.path, or another eval.code.language"
            )
        order = torch.randperm(len(found), generator=generator_for(self.seed, "passages"))[: self.passages]
        return [found[number] for number in order.tolist()]

    def _tokens(self, text: HeldOutText, chosen: Sequence[Passage], subject: Subject) -> _Tokens:
        from scipy.sparse import csr_array

        words = [passage.text for passage in chosen]
        spans = text.model.spans(words)
        read = text_activations(text, words, Reading(tokens=_TOKENS), "reading code", subject.heartbeat)
        types = [passage.types(own) for passage, own in zip(chosen, spans, strict=True)]
        places = zip(read.texts.tolist(), read.places.tolist(), strict=True)
        of_tokens = [types[passage][place] for passage, place in places]
        known = np.array([each is not None for each in of_tokens])
        read = read.of_tokens(torch.from_numpy(known))
        labels = [each for each in of_tokens if each is not None]
        files = np.array([passage.file for passage in chosen])[read.texts.numpy()]
        names = self._frequent(labels, files)
        number_of = {name: number for number, name in enumerate(names)}
        entries = [
            (token, number_of[name]) for token, (_, own) in enumerate(labels) for name in own if name in number_of
        ]
        rows, columns = np.array(entries).T
        leaves = sorted({leaf for leaf, _ in labels})
        leaf_of = {name: number for number, name in enumerate(leaves)}
        return _Tokens(
            read,
            names,
            csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(labels), len(names))),
            np.array([leaf_of[leaf] for leaf, _ in labels]),
            files,
        )

    def _frequent(self, labels: Sequence[tuple[str, frozenset[str]]], files: Int[np.ndarray, " tokens"]) -> list[str]:
        """Return the types that each half of each division has at least `least` times, and not at every token."""
        kept: set[str] | None = None
        for split in range(self.splits):
            half = self._half(files, split)
            for part in (half, ~half):
                counts = Counter(name for (_, own), inside in zip(labels, part, strict=True) if inside for name in own)
                frequent = {name for name, count in counts.items() if self.least <= count < 0.9 * part.sum()}
                kept = frequent if kept is None else kept & frequent
        if not kept:
            raise ValueError(
                f"eval.code: no type of syntax node is at {self.least} tokens of both halves; raise eval.code.passages "
                "or lower eval.code.least"
            )
        return sorted(kept)

    def _half(self, files: Int[np.ndarray, " tokens"], split: int) -> Bool[np.ndarray, " tokens"]:
        """Return the tokens of the files of the first half."""
        distinct = np.unique(files)
        order = torch.randperm(len(distinct), generator=generator_for(self.seed, "halves of files", split)).numpy()
        return np.isin(files, distinct[order[: len(distinct) // 2]])

    def _detection(
        self, codes: "csr_array", tokens: _Tokens, halves: Sequence[Bool[np.ndarray, " tokens"]]
    ) -> "_Detected":
        found = [best_latents(codes, tokens.types, half) for half in halves]
        purity = purities(codes, tokens.leaves, self.least)
        return _Detected(
            found[0].latents,
            np.array([each.f1 for each in found]),
            float(purity.mean()) if len(purity) else float("nan"),
        )

    @torch.no_grad()
    def _costs(self, text: HeldOutText, chosen: Sequence[Passage], subject: Subject) -> list[dict[str, "_Cost"]]:
        """Return the cross-entropies of each autoencoder by the type of the leaf that the predicted token is of."""
        model, site = text.model, text.site
        model.check_splice(site)
        bos = [model.bos_token_id] if text.prepends_bos else []
        most = min(_TOKENS, model.context_limit - len(bos))
        words = [passage.text for passage in chosen]
        spans, rows = model.spans(words), model.tokenise(words)
        ids = [torch.tensor([[*bos, *row[:most]]], dtype=torch.long) for row in rows]
        sums = [defaultdict[str, _Cost](_Cost) for _ in subject.autoencoders]

        def losses(row: Int[Tensor, "1 position"], *replacements: Replacement) -> Float[Tensor, " position"]:
            logits = model.logits(row, *replacements)[0, :-1].float()
            return torch.nn.functional.cross_entropy(logits, row[0, 1:].to(logits.device), reduction="none").cpu()

        def without_dictionary() -> Tensors:
            found: Tensors = {}
            progress = Progress("running the language model on code", len(ids), "passages")
            for number, row in enumerate(ids):
                found[f"base {number}"] = losses(row)
                found[f"zeros {number}"] = losses(row, (site, torch.zeros_like))
                progress.advance(1)
                subject.heartbeat()
            progress.close()
            return found

        plain = keeper(text)({"losses": "eval.code", "rows": digest_of_texts(map(str, rows))}, without_dictionary)
        progress = Progress("running the language model on code with reconstructions", len(chosen), "passages")
        for number, (passage, own_spans, row) in enumerate(zip(chosen, spans, ids, strict=True)):
            types = passage.types(own_spans)[:most]
            leaves = [None if each is None else each[0] for each in types][0 if bos else 1 :]
            base, zeros = (plain[f"{name} {number}"].tolist() for name in ("base", "zeros"))
            for total, autoencoder in zip(sums, subject.autoencoders, strict=True):
                # A BOS keeps its own activation, as training leaves it out.
                spliced = losses(row, (site, lambda x, each=autoencoder: _reconstructed(each, x, len(bos))))
                for leaf, *own in zip(leaves, base, spliced.tolist(), zeros, strict=True):
                    if leaf is not None:
                        total[leaf].add(*own)
            progress.advance(1)
            subject.heartbeat()
        progress.close()
        return [dict(total) for total in sums]


class _Detected(NamedTuple):
    """The detection of types by a dictionary.

    Attributes:
        latents: the best latent of each type, by the first division.
        f1: of each division and type.
        purity: mean over latents.
    """

    latents: Int[np.ndarray, " types"]
    f1: Float[np.ndarray, "splits types"]
    purity: float


@dataclass
class _Cost:
    """Sums of cross-entropies over tokens: of the model, with the reconstruction, with zeros."""

    count: int = 0
    base: float = 0.0
    spliced: float = 0.0
    zeros: float = 0.0

    def add(self, base: float, spliced: float, zeros: float) -> None:
        self.count += 1
        self.base += base
        self.spliced += spliced
        self.zeros += zeros

    @property
    def recovered(self) -> float | None:
        """Return the share of the rise by zeros that the reconstruction saves; None if zeros raise nothing."""
        return (self.zeros - self.spliced) / (self.zeros - self.base) if self.zeros > self.base else None


def _reconstructed(autoencoder: Autoencoder, x: Float[Tensor, "row position d"], first: int) -> Tensor:
    inner = x[:, first:].flatten(0, 1)
    decoded = autoencoder.decode(autoencoder.encode(inner.to(autoencoder.W_dec), sparse=True).codes).to(x)
    return torch.cat([x[:, :first], decoded.view_as(x[:, first:])], dim=1)


def _numbers(
    own: _Detected, control: _Detected | None, by_token: Float[np.ndarray, "splits types"]
) -> dict[str, float]:
    found = {
        **mean_and_noise("code_f1", own.f1.mean(1)),
        "code_f1_token": float(by_token.mean()),
        **mean_and_noise("code_beyond_token", (own.f1 - by_token).mean(1)),
        **mean_and_noise("code_coverage", (own.f1 >= _DETECTED).mean(1)),
        "code_coverage_token": float((by_token >= _DETECTED).mean()),
        "code_purity": own.purity,
        "code_node_types": float(own.f1.shape[1]),
    }
    if control is not None:
        found |= {
            "code_f1_random": float(control.f1.mean()),
            "code_beyond_token_random": float((control.f1 - by_token).mean()),
            "code_coverage_random": float((control.f1 >= _DETECTED).mean()),
            "code_purity_random": control.purity,
        }
    return found


def _recovered(costs: Mapping[str, _Cost]) -> dict[str, float]:
    total = _Cost()
    for each in costs.values():
        total.count += each.count
        total.base += each.base
        total.spliced += each.spliced
        total.zeros += each.zeros
    return {} if total.recovered is None else {"code_ce_recovered": total.recovered}


def _by_type(
    own: _Detected, by_token: Float[np.ndarray, "splits types"], tokens: _Tokens, costs: Mapping[str, _Cost]
) -> dict[str, dict[str, float | int | None]]:
    """Return all numbers of each type, by its name."""
    found: dict[str, dict[str, float | int | None]] = {}
    counts = np.asarray(tokens.types.sum(axis=0)).ravel()
    for number, name in enumerate(tokens.names):
        found[name] = {
            "tokens": int(counts[number]),
            "latent": int(own.latents[number]),
            "f1": float(own.f1[:, number].mean()),
            "f1_token": float(by_token[:, number].mean()),
        }
    for name, each in costs.items():
        found.setdefault(name, {}).update(
            predicted=each.count,
            ce=each.base / each.count,
            ce_spliced=each.spliced / each.count,
            ce_zero=each.zeros / each.count,
            ce_recovered=each.recovered,
        )
    return found
