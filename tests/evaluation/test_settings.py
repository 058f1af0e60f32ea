from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fsae.evaluation.settings import EvaluationSettings

CONF = Path(__file__).parents[2] / "conf" / "eval"


@pytest.mark.parametrize("name", [path.stem for path in CONF.glob("*.yaml")])
def test_every_yaml_fits_its_schema(name):
    values: Any = OmegaConf.load(CONF / f"{name}.yaml")
    del values["defaults"]
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvaluationSettings), values))
    assert isinstance(settings, EvaluationSettings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, r"eval\.batch_size is 1"),
        ({"tokens": 100}, r"eval\.tokens is 100.*eval\.batch_size=2048"),
        ({"splice_tokens": -1}, r"eval\.splice_tokens is -1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**changes)
