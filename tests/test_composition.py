"""The configs that tests compose are those of Hydra."""

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.composition import composed

COMMANDS = (
    ("arch=topk", "arch.k=7"),
    # The loss follows the architecture by an interpolation, or does not.
    ("arch=batch_topk", "loss=matryoshka", "penalty=orthogonal"),
    ("layout=jacobian_pair", "arch=topk", "model=tiny"),
    ("experiment=dictionaries/smollm2_small", "arch=jumprelu", "seed=3"),
)

PROGRAM = """
import json, sys
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.resolvers import register_resolvers
from fsae.configuration.schema import register_schemas
register_schemas()
register_resolvers()
with initialize_config_dir(str(conf_folder()), version_base="1.3"):
    for overrides in json.loads(sys.argv[1]):
        print(OmegaConf.to_yaml(compose("config", overrides=overrides)), end="---\\n")
"""


@pytest.fixture(scope="module")
def of_hydra() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)], capture_output=True, text=True, check=True
    )
    return done.stdout.split("---\n")[:-1]


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_composed_config_is_the_one_of_unchanged_hydra(number: int, of_hydra: list[str]):
    # Twice, because files are parsed once.
    for _ in range(2):
        assert OmegaConf.to_yaml(composed(*COMMANDS[number])) == of_hydra[number]
