"""`circuits`: the latents that a language model needs for a task, found by their effects and judged by ablation."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from fsae.evaluation.causal.circuit import (
    Changes,
    Effects,
    Judge,
    at_random,
    changes,
    complement,
    effects,
    everything,
    means,
    strongest,
)
from fsae.evaluation.causal.edges import Node, edges
from fsae.evaluation.causal.graph import Graph
from fsae.evaluation.causal.neighbours import read_neighbour, same_but_for_site
from fsae.evaluation.causal.passes import Reader
from fsae.evaluation.causal.placed import Placed
from fsae.evaluation.causal.tasks import TASKS, Asked, Pair, asked, pairs_of
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Examined, Subject
from fsae.files import digest_of, replacing
from fsae.latents.findings import weights_digest
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT, COUNT_OR_NONE, SEED, between
from fsae.seeds import generator_for
from fsae.sources.source import HeldOutText

log = logging.getLogger(__name__)

FOLDER = "circuits"
_KEPT = "measured.json"
# A task needs so many pairs in each of its three splits.
_LEAST_PAIRS = 4
# Candidates per pair that is wanted: some are answered wrongly.
_CANDIDATES = 1.5
# Tokens of a pass, and codes that it makes: prompts are short, and their codes are dense.
_TOKENS_AT_ONCE = 1024
_CODES_AT_ONCE = 2**25


@dataclass(frozen=True, eq=False)
class _Task:
    """A task that the model can do.

    Attributes:
        pairs: that the model answers right on both sides.
        accuracy: share of the prompts that the model answers right, of both sides.
        candidates: pairs that the model was asked.
    """

    name: str
    pairs: Asked
    accuracy: float
    candidates: int


@dataclass(frozen=True, kw_only=True)
class Circuits(Evaluation, group="eval.circuits"):
    """Circuits over the dictionaries of one or several sites (Marks et al. 2024, arXiv 2403.19647).

    A node is a latent or the reconstruction's error, at a site and a position. Its effect is (clean value - patch
    value) * gradient, for the outcome logit(right answer) - logit(wrong answer), averaged over pairs of a clean and a
    patch prompt. A circuit is the `size` nodes with the largest absolute effects. Its faithfulness is
    F = (m(circuit) - m(empty)) / (m(model) - m(empty)), where m is the mean outcome with all other nodes at their mean
    over patch prompts, position by position. Completeness is F of all nodes outside the circuit. Effects, means and F
    are each measured on a split of their own.

    The dictionaries: the run's own, and those of the other jobs of its sweep whose settings differ in the site alone.

    Attributes:
        tasks: "simple", "nounpp" and "within_rc" (the agreement of a verb with its subject: next to it, across a
            phrase, within a clause), "pronoun", "indirect_object" (the name that is not repeated), "bracket" (the one
            that closes a list in Python), or files with an object per line as in feature-circuits.
        pairs: of prompts in each split.
        size: nodes of the circuit that the numbers are about.
        sizes: further sizes, whose faithfulness is in the file of the evaluation.
        steps: 0 for effects by the gradient at the clean prompts; otherwise the steps of integrated gradients.
        nodes: latents and errors that the graph shows.
        seeds: repetitions with other splits and random circuits; the numbers are means over them.
        seed: of the first.
        others: folders of runs, or of dictionaries in SAELens' format, at other sites of the same model; they take the
            place of the sweep's.
    """

    tasks: list[str] = field(default_factory=lambda: ["simple", "nounpp", "within_rc", "pronoun"])
    pairs: int = field(default=24, metadata=between(least=_LEAST_PAIRS, most=100_000))
    size: int = field(default=100, metadata=COUNT)
    sizes: list[int] = field(default_factory=lambda: [10, 1000], metadata=COUNT)
    steps: int = field(default=0, metadata=COUNT_OR_NONE)
    nodes: int = field(default=40, metadata=between(least=1, most=1000))
    seeds: int = field(default=3, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)
    others: list[str] = field(default_factory=list)

    in_sweeps: ClassVar[bool] = False
    # It keeps its circuits itself, under the identities of the other sites' dictionaries, too.
    repeatable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied(
            "faithfulness",
            Meaning("share of a task that its circuit does, 1 for all", better=Better.more),
            {"random": "random circuits"},
        ),
        **accompanied(
            "faithfulness_latents", Meaning("faithfulness of as many latents, without errors", better=Better.more)
        ),
        **accompanied("completeness", Meaning("share of a task done without its circuit", better=Better.less)),
        "circuit_error_share": Meaning("share of all effects that errors have", better=Better.less, shown=Shown.files),
        "circuit_outcome": Meaning("what ablation of all nodes costs", unit="logits", shown=Shown.files),
        "circuit_accuracy": Meaning("share of the tasks' prompts that the model answers right", shown=Shown.files),
        "circuit_pairs": Meaning("pairs per task that the model answers right", shown=Shown.files),
        "circuit_sites": Meaning("sites that the circuits are over", shown=Shown.files),
    }

    def __post_init__(self):
        super().__post_init__()
        if not self.tasks:
            raise ValueError(
                f"eval.circuits.tasks is empty; name a task, as in eval.circuits.tasks=[{next(iter(TASKS))}]"
            )

    def measure(self, subject: Subject) -> list[Measured]:
        """Return the numbers of each run's circuits, and the folder with their graphs."""
        text = subject.source.text
        assert text is not None
        pairs = {name: pairs_of(name, round(_CANDIDATES * 3 * self.pairs), self.seed) for name in self.tasks}
        with text.model.in_float32():
            tasks = cache(lambda: self._tasks(pairs, text, subject.heartbeat))
            return [self._measured(run, text, pairs, tasks, subject.heartbeat) for run in subject.runs]

    def _tasks(
        self, pairs: Mapping[str, Sequence[Pair]], text: HeldOutText, heartbeat: Callable[[], None]
    ) -> list[_Task]:
        """Return the tasks that the model can do.

        Raises:
            ValueError: it can do none of them.
        """
        found, failed = [], []
        begin = [text.model.bos_token_id] if text.prepends_bos and text.model.bos_token_id is not None else []
        for name, candidates in pairs.items():
            posed = asked(text.model, candidates, begin)
            if posed is None:
                failed.append(f"{name}: no answer is one token of the model")
                continue
            reader = Reader(text.model, _rows_at_once(posed), heartbeat, keeper=keeper(text))
            right = [reader.outcomes(posed.clean) > 0, reader.outcomes(posed.patch) < 0]
            survived = (right[0] & right[1]).nonzero().squeeze(1).cpu()
            accuracy = torch.cat(right).double().mean().item()
            log.info(
                "task %s: %s answers %.0f %% of %d prompts right, and both prompts of %d pairs",
                name, text.model.name, 100 * accuracy, 2 * len(posed.clean), len(survived),
            )  # fmt: skip
            if len(survived) < 3 * _LEAST_PAIRS:
                failed.append(
                    f"{name}: the model answers both prompts of {len(survived)} of {len(posed.clean)} pairs right, and "
                    f"{3 * _LEAST_PAIRS} are needed"
                )
                continue
            found.append(_Task(name, posed.of(survived), accuracy, len(posed.clean)))
        if not found:
            raise ValueError(
                f"model {text.model.name} can do none of the tasks of eval.circuits ({'; '.join(failed)}); give it a "
                "task of its own with eval.circuits.tasks=[FILE], or leave circuits out of eval"
            )
        for reason in failed:
            log.warning("circuits are found for the other tasks alone: %s", reason)
        return found

    def _measured(
        self,
        run: Examined,
        text: HeldOutText,
        pairs: Mapping[str, Sequence[Pair]],
        tasks: Callable[[], Sequence[_Task]],
        heartbeat: Callable[[], None],
    ) -> Measured:
        members = self._dictionaries(run, text)
        key = self._key(members, text, pairs)
        folders = [*([] if run.folder is None else [run.folder]), *self._neighbours(run.folder)]
        if (kept := _kept(folders, key)) is not None:
            folder, written = kept
            log.info("the circuits are those in %s", folder)
            return Measured(written["numbers"], content=written["content"], folders={FOLDER: partial(_copy, folder)})
        numbers, content, graphs = [], [], []
        for number, dictionaries in enumerate(members):
            of_task = {
                task.name: _OfTask(self, text, dictionaries, task, heartbeat, f"circuits of {task.name}").measured()
                for task in tasks()
            }
            measured = {name: own for name, (own, _, _) in of_task.items() if own is not None}
            if not measured:
                raise ValueError(
                    f"ablating every node of {', '.join(str(each.site) for each in dictionaries)} changes the answers "
                    "of no task, so eval.circuits has nothing to explain; choose another site, or more of them with "
                    "eval.circuits.others"
                )
            sites = [str(each.site) for each in dictionaries]
            numbers.append(
                {
                    name: sum(own[name] for own in measured.values()) / len(measured)
                    for name in next(iter(measured.values()))
                }
                | {"circuit_sites": float(len(sites))}
            )
            content.append({"sites": sites, "tasks": {name: own for name, (_, own, _) in of_task.items()}})
            prefix = f"{number}-" if len(members) > 1 else ""
            graphs += [(f"{prefix}{_file_name(name)}", graph) for name, (_, _, graph) in of_task.items() if graph]
        found = {"circuits": content}
        writer = partial(_write, graphs, {"key": key, "numbers": numbers, "content": found}, run.folder)
        return Measured(numbers, content=found, folders={FOLDER: writer})

    def _neighbours(self, folder: Path | None) -> list[Path]:
        """Return the folders of the dictionaries that join those of a run."""
        if self.others or folder is None:
            return [Path(each).absolute() for each in self.others]
        return same_but_for_site(folder)

    def _dictionaries(self, run: Examined, text: HeldOutText) -> list[list[Placed]]:
        """Return the dictionaries of each member's circuit, in the order of a forward pass.

        Raises:
            ValueError: two are at one site, one does not fit its site, or their populations differ in size.
        """
        neighbours = [read_neighbour(folder) for folder in self._neighbours(run.folder)]
        at = {text.site: "the run itself"}
        for each in neighbours:
            if each.site in at:
                raise ValueError(
                    f"eval.circuits: the dictionaries of {each.folder} and of {at[each.site]} are both at {each.site}; "
                    "leave one of them out of eval.circuits.others"
                )
            at[each.site] = str(each.folder)
            width = text.model.width(each.site)
            if each.autoencoders[0].d_in != width:
                raise ValueError(
                    f"eval.circuits: the dictionary of {each.folder} reads vectors of width "
                    f"{each.autoencoders[0].d_in}, and {each.site} of model {text.model.name} has "
                    f"width {width}; choose one of the same model"
                )
            if len(each.autoencoders) != len(run.autoencoders):
                raise ValueError(
                    f"eval.circuits: {each.folder} has {len(each.autoencoders)} dictionaries and the run has "
                    f"{len(run.autoencoders)}; choose populations of equal size"
                )
        for site in at:
            text.model.check_splice(site)
        device = run.autoencoders[0].W_dec.device
        found = []
        for member, own in enumerate(run.autoencoders):
            placed = [Placed(each.site, each.autoencoders[member].to(device)) for each in neighbours]
            found.append(sorted([Placed(text.site, own), *placed], key=lambda each: each.site.place))
        return found

    def _key(self, members: Sequence[Sequence[Placed]], text: HeldOutText, pairs: Mapping[str, Sequence[Pair]]) -> str:
        """Return what the circuits depend on: runs that share it have the same ones."""
        settings = {name: value for name, value in asdict(self).items() if name != "others"}
        weights = [[[str(each.site), weights_digest(each.autoencoder)] for each in own] for own in members]
        asks = {name: [astuple(pair) for pair in each] for name, each in pairs.items()}
        model = text.origin | {"bos": text.prepends_bos}
        return digest_of({"settings": settings, "weights": weights, "model": model, "pairs": asks})


class _OfTask:
    """The circuits of one task over one set of dictionaries."""

    def __init__(
        self,
        settings: Circuits,
        text: HeldOutText,
        dictionaries: Sequence[Placed],
        task: _Task,
        heartbeat: Callable[[], None],
        label: str,
    ):
        self.settings, self.text, self.dictionaries, self.task = settings, text, dictionaries, task
        self.count = min(settings.pairs, len(task.pairs.clean) // 3)
        # Per seed: means, clean and patch prompts, the model, nothing, four circuits. Then the other sizes, four each,
        # and the graph.
        prompts = self.count * settings.seeds * (9 + settings.steps * len(dictionaries))
        prompts += self.count * (4 * len(settings.sizes) + 1)
        self.progress = Progress(label, prompts, "prompts")
        rows = _rows_at_once(task.pairs, dictionaries)
        self.reader = Reader(text.model, rows, heartbeat, self.progress.advance, keeper(text))

    def measured(self) -> tuple[dict[str, float] | None, dict[str, Any], Graph | None]:
        """Return the task's numbers (None if the sites do not matter for it), its content, and its graph."""
        settings, repeated = self.settings, list[dict[str, float]]()
        content: dict[str, Any] = {
            "accuracy": self.task.accuracy,
            "pairs": len(self.task.pairs.clean),
            "asked": self.task.candidates,
            "left_out": self.task.pairs.unfit,
            "pairs_per_split": self.count,
        }
        graph = None
        for seed in range(settings.seed, settings.seed + settings.seeds):
            to_find, for_means, to_judge = self._splits(seed)
            found = changes(self.reader, self.dictionaries, to_find, settings.steps)
            ranked = effects(self.dictionaries, found)
            judge = Judge(
                self.reader, self.dictionaries, to_judge.clean, means(self.reader, self.dictionaries, for_means.patch)
            )
            model, (nothing,) = self.reader.outcomes(to_judge.clean), judge.outcomes([everything(ranked, False)])
            cost = (model - nothing).double()
            if cost.mean().abs() < 2 * cost.std() / len(cost) ** 0.5:
                self.progress.close()
                return None, content | {"reason": "the outcome does not change if every node is ablated"}, None
            whole, empty = model.double().mean().item(), nothing.double().mean().item()
            sizes = {settings.size, *settings.sizes} if seed == settings.seed else {settings.size}
            curve = self._curve(judge, ranked, sorted(sizes), whole, empty, seed)
            own = next(point for point in curve if point["size"] == settings.size)
            errors = {"circuit_error_share": _error_share(ranked), "circuit_outcome": whole - empty}
            repeated.append({name: own[name] for name in _CURVES} | errors)
            if seed == settings.seed:
                content["curve"] = curve
                graph = self._graph(to_find, found, ranked)
        self.progress.close()
        numbers = {
            name: value
            for each in repeated[0]
            for name, value in mean_and_noise(each, [own[each] for own in repeated]).items()
            if name in Circuits.meanings
        }
        numbers |= {"circuit_accuracy": self.task.accuracy, "circuit_pairs": float(len(self.task.pairs.clean))}
        return numbers, content | {"numbers": numbers}, graph

    def _splits(self, seed: int) -> tuple[Asked, Asked, Asked]:
        order = torch.randperm(
            len(self.task.pairs.clean), generator=generator_for(seed, "circuits", _file_name(self.task.name))
        )
        find, mean, judge = (self.task.pairs.of(rows) for rows in order[: 3 * self.count].split(self.count))
        return find, mean, judge

    def _curve(
        self, judge: Judge, ranked: Effects, sizes: Sequence[int], whole: float, empty: float, seed: int
    ) -> list[dict[str, float]]:
        """Return the shares of circuits by size, each with the smallest absolute effect in the circuit."""
        circuits = {}
        for size in sizes:
            circuit = strongest(ranked, size)
            drawn = at_random(ranked, size, generator_for(seed, "random circuit", size, _file_name(self.task.name)))
            only_latents = strongest(ranked, size, "removed")
            of_size = (circuit, drawn, only_latents, complement(circuit))
            circuits |= {(size, name): each for name, each in zip(_CURVES, of_size, strict=True)}
        shares = judge.shares(circuits, whole, empty)
        joined = torch.cat([each.flatten() for each in ranked.values()]).abs()
        return [
            {"size": size, "threshold": joined.topk(min(size, len(joined))).values[-1].item()}
            | {name: shares[size, name] for name in _CURVES}
            for size in sizes
        ]

    def _graph(self, pairs: Asked, found: Changes, ranked: Effects) -> Graph:
        circuit = strongest(ranked, self.settings.nodes)
        nodes = [
            Node(site, position, latent)
            for site, inside in circuit.items()
            for position, latent in inside.nonzero().tolist()
        ]
        clean = pairs.clean
        drawn = edges(self.reader, self.dictionaries, clean, found, nodes)
        tokens = self.text.model.strings(clean.tokens[0].tolist())
        answers = self.text.model.strings([int(clean.right[0]), int(clean.wrong[0])])
        return Graph(
            task=self.task.name,
            model=self.text.model.name,
            tokens=tokens,
            answers=(answers[0], answers[1]),
            prompts=len(clean),
            widths={each.site: each.autoencoder.d_sae for each in self.dictionaries},
            effects={node: ranked[node.site][node.position, node.latent].item() for node in nodes},
            edges=drawn,
        )


_CURVES = ("faithfulness", "faithfulness_random", "faithfulness_latents", "completeness")


def _error_share(ranked: Effects) -> float:
    errors = sum(each[:, -1].abs().sum().item() for each in ranked.values())
    return errors / max(1e-30, sum(each.abs().sum().item() for each in ranked.values()))


def _rows_at_once(pairs: Asked, dictionaries: Sequence[Placed] = ()) -> int:
    widest = max((each.autoencoder.d_sae for each in dictionaries), default=1)
    return max(1, min(_TOKENS_AT_ONCE, _CODES_AT_ONCE // widest) // pairs.clean.tokens.shape[1])


def _file_name(task: str) -> str:
    """Return a task's name, or that of its file without the folder: draws do not depend on where a file is."""
    return Path(task).stem


def _kept(folders: Sequence[Path], key: str) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the first folder of circuits with this key, and what it holds."""
    for folder in folders:
        file = folder / FOLDER / _KEPT
        if file.exists():
            written = json.loads(file.read_text(encoding="utf-8"))
            if written["key"] == key:
                return file.parent, written
    return None


def _copy(earlier: Path, folder: Path) -> None:
    if earlier == folder:
        return
    if folder.exists():
        shutil.rmtree(folder)
    with replacing(folder) as unfinished:
        shutil.copytree(earlier, unfinished)


def _write(graphs: Sequence[tuple[str, Graph]], kept: Mapping[str, Any], run: Path | None, folder: Path) -> None:
    from fsae.analysis.circuit_page import write_circuit_page

    with replacing(folder) as unfinished:
        unfinished.mkdir()
        for name, graph in graphs:
            content = json.dumps(graph.as_json(name), indent=1)
            (unfinished / f"{name}.json").write_text(content + "\n", encoding="utf-8")
        title = run.name if run else "circuits"
        write_circuit_page(unfinished, [graph.as_json(name) for name, graph in graphs], title)
        (unfinished / _KEPT).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
