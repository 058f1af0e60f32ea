from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsae.evaluation import kept as module
from fsae.evaluation.kept import computed, digest_of_tensor, digest_of_texts, keeper
from fsae.sources.source import HeldOutText
from tests.evaluation.downstream.texts import Text

# float64 has bits that float32 and JSON do not keep; a baseline may be true or false, and NaN.
FOUND = {
    "auc": torch.tensor([1 / 3, float("nan")], dtype=torch.float64),
    "on": torch.tensor([True, False]),
    "ids": torch.arange(6).view(2, 3).T,
}


class Computation:
    def __init__(self):
        self.times = 0

    def __call__(self) -> dict[str, Tensor]:
        self.times += 1
        return FOUND


def found(folder: Path | None, compute: Computation, content: Any = None, **changes: Any) -> dict[str, Tensor]:
    text = cast(HeldOutText, Text(folder, **changes))
    return keeper(text)({"what": "probes"} if content is None else content, compute)


def test_kept_findings_have_the_same_bits(tmp_path: Path):
    compute = Computation()
    first, again, never = found(tmp_path, compute), found(tmp_path, compute), found(None, compute)
    assert compute.times == 2
    for name, tensor in FOUND.items():
        for own in (first, again, never, computed({}, compute)):
            assert own[name].dtype == tensor.dtype
            assert digest_of_tensor(own[name]) == digest_of_tensor(tensor)


@pytest.mark.parametrize(
    "change",
    [
        {"content": {"what": "other probes"}},
        {"origin": {"model": "other", "dtype": "float32"}},
        {"prepends_bos": False},
        {"norm_limit": 3.0},
    ],
)
def test_other_findings_are_kept_apart(tmp_path: Path, change: dict[str, Any]):
    compute = Computation()
    found(tmp_path, compute)
    found(tmp_path, compute, **change)
    assert compute.times == 2
    assert len(list((tmp_path / "evaluations").iterdir())) == 2


def test_findings_of_other_code_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compute = Computation()
    found(tmp_path, compute)
    monkeypatch.setattr(module, "versions", lambda: {"code": "changed"})
    found(tmp_path, compute)
    assert compute.times == 2


def test_a_file_of_other_content_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "digest_of", lambda content: "collision")
    compute = Computation()
    found(tmp_path, compute)
    found(tmp_path, compute, {"what": "other probes"})
    assert compute.times == 2


@pytest.mark.parametrize("missing", ["names", "content"])
def test_a_file_of_an_earlier_version_is_computed_again(tmp_path: Path, missing: str):
    compute = Computation()
    found(tmp_path, compute)
    (path,) = (tmp_path / "evaluations").iterdir()
    with safe_open(path, "pt") as opened:
        described = {name: value for name, value in opened.metadata().items() if name != missing}
        tensors = {name: opened.get_tensor(name) for name in FOUND}
    save_file(tensors, path, metadata=described)
    assert found(tmp_path, compute).keys() == FOUND.keys()
    assert compute.times == 2


def test_a_computation_that_is_stopped_leaves_nothing(tmp_path: Path):
    def stopped() -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper(cast(HeldOutText, Text(tmp_path)))({}, stopped)
    assert not list(tmp_path.rglob("*"))


def test_digests_differ_for_other_texts_and_tensors():
    assert digest_of_texts(["ab", "c"]) != digest_of_texts(["a", "bc"])
    ids = torch.arange(6)
    assert len({digest_of_tensor(each) for each in (ids, ids.int(), ids.view(2, 3), ids + 1)}) == 4
