"""Every `python -m fsae.run` of the documentation passes the checks, with the first value of each list, and every
`python -m fsae.publish` has arguments that the command knows."""

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from docs.assemble import page_paths
from docs.reference import REPOSITORY
from fsae.commands.publish import command_line
from fsae.configuration.checks import check
from fsae.configuration.overrides import with_lists
from fsae.configuration.schema import settings_of
from tests.composition import composed

# Settings of Hydra itself are not part of the composed settings, and the reader's own YAML is not here.
_ELSEWHERE = ("hydra.", "hydra/")


def commands(name: str = "run") -> list[str]:
    """Return the commands `python -m fsae.NAME`, each on one line and without its comment."""
    found = []
    for source in page_paths():
        if source.endswith(".md"):
            text = (REPOSITORY / source).read_text().replace("\\\n", " ")
            found += re.findall(rf"^(?:    |.*`)python -m fsae\.{name} ([^`\n]*)", text, re.MULTILINE)
    return sorted({re.sub(r"\s+#.*", "", command).strip() for command in found})


@pytest.mark.parametrize("command", [each for each in commands() if "--" not in each and "..." not in each])
def test_a_command_of_the_documentation_passes_the_checks(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))
    words = [word for word in shlex.split(command) if word != "-m" and not word.startswith(_ELSEWHERE)]
    words = with_lists(words)
    overrides = OverridesParser.create().parse_overrides(words)
    chosen = [
        f"{each.get_key_element()}={next(each.sweep_string_iterator())}" if each.is_sweep_override() else word
        for word, each in zip(words, overrides, strict=True)
    ]
    check(settings_of(composed(*chosen)))


@pytest.mark.parametrize("command", commands("publish"))
def test_a_publishing_command_of_the_documentation_is_understood(command: str):
    options = command_line().parse_args(shlex.split(command))
    targets = ("repo", "neuronpedia", "neuronpedia_upload", "saedashboard", "saebench", "circuit_tracer")
    assert any(getattr(options, target) for target in (*targets, "crosscoder_learning"))
