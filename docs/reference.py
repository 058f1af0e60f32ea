"""The reference pages of the documentation site: settings, metrics and commands, read from the code and from conf/."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import fsae
from fsae.configuration.schema import RunSettings, schemas
from fsae.evaluation.choices import CHOICES
from fsae.outputs.results import Better
from fsae.ranges import range_of, written
from fsae.training.measures import MEANINGS

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"

# One line for each config group, in the order in which the pages list them.
GROUPS = {
    "model": "The language model whose activations are read.",
    "site": "The place in the model at which activations are read. `site.layer` is the layer.",
    "layout": "The sites that a dictionary reads, and those that it writes. See "
    "[Dictionaries between sites](../../layouts.md).",
    "dataset": "The text that the language model reads. See [Data sets](../../datasets.md).",
    "source": "The stream of vectors to train on: activations, or vectors that need no language model. See "
    "[Activations](../../activations.md) and [Populations](../../populations.md).",
    "arch": "The architecture of the autoencoder.",
    "loss": "The terms of the training objective, without the penalty. By default an architecture brings its own.",
    "penalty": "The penalty that a study is about: `loss.penalty`. See [The Fisher penalty](../../penalty.md).",
    "population": "How many autoencoders train together. See [Populations](../../populations.md).",
    "trainer": "How an autoencoder is trained. See [Splines](../../splines.md) for `pam` and `fit`.",
    "eval": "The evaluations of a trained autoencoder: `eval=[vectors,splice]` chooses several.",
    "suite": "The sizes that the evaluations share.",
    "tracking": "Where metrics are logged.",
    "paths": "Where files are written.",
    "launcher": "How the jobs of a sweep are started. See [Sweeps](../../sweeps.md).",
    "experiment": "Presets. Each changes settings of several groups; the studies use them.",
    "debug": "Small settings for a quick check.",
    "search": "The value that a search minimises.",
    "sae": "An existing autoencoder.",
}

COMMANDS = {
    "run": "Train, evaluate and export an autoencoder; with `-m`, a sweep.",
    "evaluate": "Evaluate finished runs again, without training.",
    "latents": "Look at the latents of a run, at those of a prompt, or at two dictionaries side by side.",
    "steer": "Steer a language model by one latent, and print plain and steered text side by side.",
    "publish": "Publish a finished run on the Hugging Face hub, or in the layouts of other projects.",
    "resume": "Launch the unfinished jobs of a sweep again.",
    "report": "Compare runs on one HTML page.",
    "store": "List, verify and prune the stored activations.",
    "sync": "Deliver a run's metrics to the MLflow server.",
}


_ARROWS = {Better.more: "↑", Better.less: "↓", Better.neither: ""}
# How the settings of a group begin, if not with its name. A loss names its terms itself.
_PREFIXES = {"loss": "", "penalty": "loss.penalty."}


@dataclass(frozen=True)
class Choice:
    """A YAML file of a config group."""

    name: str
    comment: str
    schemas: tuple[str, ...]
    text: str


def generated_pages() -> dict[str, str]:
    """Return all pages of the reference, by their path in the site."""
    return {
        **settings_pages(),
        "reference/metrics.md": metrics_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
    }


def settings_pages() -> dict[str, str]:
    """Return the pages of all config groups, by their path in the site."""
    found = {path.name for path in CONF.iterdir() if path.is_dir()} | {name.partition("/")[0] for name in schemas()}
    unknown = found - set(GROUPS) - {"hydra"}
    if unknown:
        raise ValueError(f"docs/reference.py has no line for the config group {min(unknown)}; add it to GROUPS")
    pages = {f"reference/settings/{group}.md": _group_page(group) for group in GROUPS if group in found}
    rows = "".join(f"| [`{group}`]({group}.md) | {line} |\n" for group, line in GROUPS.items() if group in found)
    pages["reference/settings/index.md"] = (
        "# Settings\n\nEvery setting belongs to a config group. `group=choice` chooses a file of the group, and "
        "`group.setting=value` changes one value.\n\n"
        f"| group | contents |\n|---|---|\n{rows}\n"
        "Three settings belong to no group:\n\n" + _table(RunSettings, "", only=("task", "name", "seed")) + "\n"
        "A whole number may be written as `250_000` or `1e6`. `null` means none.\n\n"
        "## The default configuration\n\n`python -m fsae.run --cfg job` prints the configuration that a command would "
        f"use. Without any argument it is:\n\n```yaml\n{_output('run', '--cfg', 'job')}\n```\n"
    )
    return pages


def metrics_page() -> str:
    """Return the page of all metrics: the held-out ones by evaluation, and those of training."""
    sections = [
        "# Metrics\n\nA run measures these on held-out data, in raw units. They are in `results.json`, MLflow and "
        "the report. A metric is absent if it does not apply to the run. ↑ marks metrics of which more is better, ↓ "
        "those of which less is better; the others have no better direction.\n\n"
        "Every run has `eval=[vectors,splice,truth,agreement,crosscoder,jacobian,latents]` by default, and measures "
        "those that its source and its population allow. `python -m fsae.evaluate` adds others to a finished run.\n"
    ]
    for name, evaluation in CHOICES.items():
        rows = "".join(
            f"| `eval/{metric}` | {_cell(each.text)} | {_cell(each.unit)} | {_ARROWS[each.better]} |\n"
            for metric, each in evaluation.meanings.items()
        )
        sections.append(
            f"## {name}\n\n{_escaped(_summary(evaluation))}\n\n| metric | meaning | unit | |\n|---|---|---|---|\n{rows}"
        )
    rows = "".join(f"| `train/{name}` | {_cell(meaning)} |\n" for name, meaning in MEANINGS.items())
    sections.append(
        "## Training\n\nA run logs these while it trains, every `trainer.log_every` steps. They are in "
        "`metrics.jsonl` and MLflow, by the number of samples. They are means over the steps since the last logging, "
        "unless the meaning is another, and over the members of a population. TERM stands for the name of a loss "
        "term, MEMBER for the number of a member and UNIT for tokens or samples.\n\n"
        f"| metric | meaning |\n|---|---|\n{rows}"
    )
    return "\n".join(sections)


def python_page() -> str:
    """Return the page of the public Python surface; the builder writes each name's documentation."""
    names = [name for name in fsae.__all__ if inspect.isroutine(value := getattr(fsae, name)) or inspect.isclass(value)]
    return "# Python\n\n[fsae from Python](../python.md) shows how to use these names.\n\n" + "".join(
        f"::: fsae.{name}\n\n" for name in names
    )


def commands_page() -> str:
    """Return the page of all commands."""
    # The settings have pages of their own.
    helps = {name: _output(name, "--help").partition("== Config ==")[0].strip() for name in COMMANDS}
    pages = "".join(
        f"## `python -m fsae.{name}`\n\n{line}\n\n```text\n{helps[name]}\n```\n\n" for name, line in COMMANDS.items()
    )
    return f"# Commands\n\n`fsae` is short for `python -m fsae.run`.\n\n{pages}"


def undocumented() -> Iterator[str]:
    """Yield what the reference cannot describe: a public name without a docstring, a setting without a meaning."""
    for name in fsae.__all__:
        yield from undocumented_parts(f"fsae.{name}", getattr(fsae, name))
    for kind in _all_kinds():
        known = _meanings_of(kind)
        for name in _own_fields(kind):
            if not known.get(name):
                yield f"{kind.__module__}.{kind.__qualname__}: the docstring's Attributes do not describe {name}"
    for group in GROUPS:
        for choice in choices(group):
            if not choice.comment and not _summary_of(choice):
                yield f"conf/{group}/{choice.name}.yaml has no comment that describes it"


def undocumented_parts(name: str, value: object) -> Iterator[str]:
    """Yield what a public function, or a public class and its public methods, leave undescribed."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    text = inspect.getdoc(value)
    if not text:
        yield f"{name} has no docstring"
        return
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    described = re.findall(r"^    (\w+)(?: \(.*\))?:", section[1], re.MULTILINE) if section else []
    for each in described:
        if each not in inspect.signature(value).parameters:
            yield f"{name}: the docstring describes {each}, which is no parameter"
    if inspect.isclass(value) and value.__module__.startswith("fsae"):
        for method, inner in vars(value).items():
            # An attribute that is computed may be described with the others.
            if not method.startswith("_") and not re.search(rf"^    {method}:", text, re.MULTILINE):
                yield from undocumented_parts(f"{name}.{method}", inner)


def choices(group: str, conf: Path = CONF) -> list[Choice]:
    """Return the YAML files of a config group."""
    folder = conf / group
    return [_choice(path, str(path.relative_to(folder).with_suffix(""))) for path in sorted(folder.rglob("*.yaml"))]


def _choice(path: Path, name: str) -> Choice:
    lines = path.read_text().splitlines()
    before = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    comment = " ".join(line.lstrip("# ").strip() for line in before if not line.startswith("# @package"))
    schemas = tuple(f"{group}/{name}" for group, name in re.findall(r"/schema/(\w+)@\S+: (\w+)", path.read_text()))
    return Choice(name=name, comment=comment, schemas=schemas, text=path.read_text().strip())


def _summary_of(choice: Choice) -> str:
    kinds = [schemas()[name] for name in choice.schemas if name in schemas()]
    return _summary(kinds[0]) if kinds else ""


def _group_page(group: str) -> str:
    found = choices(group)
    page = [f"# `{group}`\n\n{GROUPS[group]}\n"]
    if found:
        page.append("## Choices\n\n| choice | meaning |\n|---|---|")
        page += [f"| `{group}={each.name}` | {_cell(each.comment or _summary_of(each))} |" for each in found]
        page.append("\nThe files:\n")
        for each in found:
            indented = "\n".join(f"    {line}".rstrip() for line in each.text.splitlines())
            page.append(f'??? example "conf/{group}/{each.name}.yaml"\n\n    ```yaml\n{indented}\n    ```\n')
    kinds = list(_kinds_of(group))
    if kinds:
        page.append("## Settings\n")
        page += [_section(kind, group) for kind in kinds]
    return "\n".join(page)


def _section(kind: type, group: str) -> str:
    names = ", ".join(f"`{name.partition('/')[2]}`" for name, schema in schemas().items() if schema is kind)
    bases = [base for base in kind.__mro__[1:] if is_dataclass(base)]
    text = f"### {kind.__name__}\n\n{_escaped(_summary(kind))}\n\n"
    if names and group != names.strip("`"):
        text += f"Schema of {names}. "
    if bases:
        text += "It also has the settings of " + ", ".join(
            f"[{each.__name__}](#{each.__name__.lower()})" for each in bases
        )
        text += ".\n\n"
    own = _own_fields(kind)
    if own:
        text += "\n\n" + _table(kind, _PREFIXES.get(group, f"{group}."), only=own)
    for enum in _enums_of(kind, own):
        text += f"\n**{enum.__name__}**: {_flat_docstring(enum)}\n"
    return text + "\n"


def _table(kind: type, prefix: str, only: tuple[str, ...]) -> str:
    known, hints = _meanings_of(kind), get_type_hints(kind)
    rows = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for each in fields(kind):
        if each.name not in only:
            continue
        allowed = range_of(each.metadata)
        values = _type_name(hints[each.name]) + (f", {_short(allowed)}" if allowed is not None else "")
        rows.append(f"| `{prefix}{each.name}` | {values} | {_default(each)} | {_cell(known.get(each.name, ''))} |")
    return "\n".join(rows) + "\n"


def _short(allowed: Any) -> str:
    least = f"> {written(allowed.least)}" if allowed.open_least else f"≥ {written(allowed.least)}"
    if allowed.most >= 1e6:
        return least
    return least + (f", < {written(allowed.most)}" if allowed.open_most else f", ≤ {written(allowed.most)}")


def _default(each: Any) -> str:
    if each.default is MISSING:
        if each.default_factory is MISSING:
            return "from the file"
        value = each.default_factory()
        return f"[{type(value).__name__}](#{type(value).__name__.lower()})" if is_dataclass(value) else f"`{value}`"
    value = each.default
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, Enum):
        return f"`{value.value}`"
    return f"`{written(value)}`" if isinstance(value, int | float) else f"`{value or chr(34) * 2}`"


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type_name(each) for each in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"list of {_type_name(get_args(hint)[0])}"
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return ", ".join(f"`{each.value}`" for each in hint)
    if inspect.isclass(hint) and is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    names = {NoneType: "`null`", int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _kinds_of(group: str) -> Iterator[type]:
    """Yield the settings classes of a group, bases first, each once; nested settings follow their owner."""
    seen: set[type] = set()

    def walk(kind: type) -> Iterator[type]:
        for each in reversed(kind.__mro__):
            if is_dataclass(each) and each not in seen:
                seen.add(each)
                yield each
                nested = [arg for hint in get_type_hints(each).values() for arg in (get_args(hint) or (hint,))]
                for inner in nested:
                    if inspect.isclass(inner) and is_dataclass(inner):
                        yield from walk(inner)

    used = {name for choice in choices(group) for name in choice.schemas}
    own = [name for name in schemas() if name.partition("/")[0] == group]
    # A penalty's schema is that of a loss term.
    for name in own or [name for name in schemas() if name in used]:
        yield from walk(schemas()[name])


def _all_kinds() -> Iterator[type]:
    for group in GROUPS:
        yield from _kinds_of(group)


def _own_fields(kind: type) -> tuple[str, ...]:
    own = inspect.get_annotations(kind)
    return tuple(each.name for each in fields(kind) if each.name in own)


def _enums_of(kind: type, own: tuple[str, ...]) -> list[type[Enum]]:
    hints = get_type_hints(kind)
    found = [arg for name in own for arg in (get_args(hints[name]) or (hints[name],))]
    return [each for each in found if inspect.isclass(each) and issubclass(each, Enum)]


def _meanings_of(kind: type) -> dict[str, str]:
    """Return the meaning of each setting: from the Attributes of the class and its bases, else from its enumeration."""
    found = {each.name: _summary(kinds[0]) for each in fields(kind) if (kinds := _enums_of(kind, (each.name,)))}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__doc__ or "") if is_dataclass(each) else ""
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        for names, meaning in re.findall(
            r"^    ([\w, ]+):((?: .*)?(?:\n {8,}.*)*)", section[1] if section else "", re.M
        ):
            found.update({name.strip(): " ".join(meaning.split()) for name in names.split(",")})
    return found


def _summary(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())


def _flat_docstring(kind: type) -> str:
    summary, members = (
        _summary(kind),
        re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", inspect.cleandoc(kind.__doc__ or ""), re.M),
    )
    return _escaped(summary) + "".join(f"\n\n- `{name}`: {_escaped(' '.join(text.split()))}" for name, text in members)


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Return text of the code as Markdown that shows it unchanged; code between backticks stays code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\[*])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _output(command: str, *arguments: str) -> str:
    """Return what a command prints."""
    environment = {**os.environ, "COLUMNS": "100", "FSAE_OUTPUTS": "outputs"}
    done = subprocess.run(
        [sys.executable, "-m", f"fsae.{command}", *arguments],
        capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY,
    )  # fmt: skip
    return done.stdout.strip()
