"""The bodies of Neuronpedia's upload, and its limits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.neuronpedia_upload import check_batch, write_upload
from fsae.publishing.source_set import SourceSet
from tests.publishing.small_store import W_DEC

Body = dict[str, Any]


def uploaded(folder: Path, store: LatentStore, source: SourceSet, labels: bool = False) -> Body:
    assert write_upload(store, W_DEC, source, folder, labels) == [1]
    return json.loads((folder / "batch-0.json").read_text())


def test_a_body_has_the_latents_that_are_on(store: LatentStore, source: SourceSet, tmp_path: Path):
    body = uploaded(tmp_path / "upload", store, source)
    features = body.pop("features")
    assert body == {"modelId": "tiny", "source": "1-small-set"}
    assert [feature["index"] for feature in features] == [0, 2]
    first = features[0]
    assert list(first) == ["index", "density", "topLogits", "bottomLogits", "explanations", "activations"]
    assert first["topLogits"][0] == {"token": " a", "value": 0.12346}
    assert first["explanations"] == []
    top, _, sampled = first["activations"]
    assert (top["quantileMin"], top["quantileMax"], top["quantileFraction"]) == (-1, 3.0, None)
    assert sampled["quantileFraction"] == pytest.approx(2 / 3, rel=1e-4)
    assert json.loads((tmp_path / "upload" / "source-set.json").read_text()) == {
        "name": "small-set", "modelId": "Tiny", "description": "three latents", "url": None,
    }  # fmt: skip


def test_labels_become_explanations_that_are_cut_to_the_limit(store: LatentStore, source: SourceSet, tmp_path: Path):
    first, last = uploaded(tmp_path / "upload", store, source, labels=True)["features"]
    assert first["explanations"] == [{"text": "' a'", "methodName": None, "modelName": None}]
    assert last["explanations"][0]["text"] == "x" * 512


def change(path: str, value: Any) -> Callable[[Body], None]:
    """Return a change of the value at a path such as "features.0.index"."""

    def apply(body: Body) -> None:
        *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
        inner: Any = body
        for part in above:
            inner = inner[part]
        inner[last] = value

    return apply


LOGIT = {"token": "a", "value": 1.0}
EXAMPLE = "features.0.activations.0"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("modelId", "Tiny"), "modelId is Tiny; .* a lower-case name"),
        (change("source", ""), "source is ;"),
        (change("features", []), "features is 0; .* 1 to 128 latents"),
        (lambda body: body.update(features=body["features"] * 65), "features is 130;"),
        (change("features.1.index", 0), "different indices"),
        (change("features.1.index", 10_000_001), r"features\[1\].index is 10000001; .* 0 to 10000000"),
        (change("features.0.density", 1.5), r"features\[0\].density is 1.5; .* 0 to 1"),
        (change("features.0.topLogits", [LOGIT] * 21), r"features\[0\].topLogits is 21; .* at most 20 tokens"),
        (change("features.0.bottomLogits.0.token", ""), r"bottomLogits\[0\].token is an empty one"),
        (change("features.0.topLogits.1.value", math.nan), r"topLogits\[1\].value is nan; .* a number"),
        (change("features.0.explanations", [{"text": ""}]), r"explanations\[0\].text is 0; .* 1 to 512 characters"),
        (change("features.0.explanations", [{"text": "x" * 513}]), r"explanations\[0\].text is 513"),
        (change("features.1.activations", []), r"features\[1\].activations is none; .* an example or more"),
        (change(f"{EXAMPLE}.tokens", []), r"activations\[0\].tokens is 0; .* 1 to 1024 tokens"),
        (change(f"{EXAMPLE}.tokens", ["a"] * 1025), r"tokens is 1025"),
        (change(f"{EXAMPLE}.tokens.2", ""), r"tokens\[2\] is an empty one; .* a text"),
        (change(f"{EXAMPLE}.values", [1.0]), r"values is 1; .* as many as tokens \(4\)"),
        (change(f"{EXAMPLE}.values.0", math.inf), r"values\[0\] is inf"),
        (change(f"{EXAMPLE}.quantileMax", 1e9), r"quantileMax is 1000000000.0; .* at most 99999999"),
        (change("features.0.activations.2.quantileFraction", -0.1), r"activations\[2\].quantileFraction is -0.1"),
    ],
)
def test_a_body_beyond_a_limit_is_refused(
    changed: Callable[[Body], None], message: str, store: LatentStore, source: SourceSet, tmp_path: Path
):
    body = uploaded(tmp_path / "upload", store, source)
    check_batch(body)
    changed(body)
    with pytest.raises(ValueError, match=message):
        check_batch(body)
