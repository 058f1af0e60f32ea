"""Neuronpedia's upload batches: the bodies that any user may post for a source set of one's own.

source-set.json   the body of POST /api/source-set/new, which comes first
batch-{i}.json    the bodies of POST /api/feature/upload-batch, 128 latents each

The service checks a body when it arrives; `check_batch` has the same limits.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.latent_facts import BATCH, Example, LatentFacts, batches_of_facts
from fsae.publishing.new_folder import new_folder
from fsae.publishing.source_set import SourceSet

_MOST_TOKENS, _MOST_LOGITS, _MOST_TEXT = 1024, 20, 512
_LARGEST_INDEX, _LARGEST_QUANTILE = 10_000_000, 99_999_999
# Positions on either side of a peak: more would be above the limit of tokens.
_WINDOW = (_MOST_TOKENS - 1) // 2


def write_upload(
    store: LatentStore,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    source: SourceSet,
    folder: Path,
    labels: bool = False,
) -> list[int]:
    """Write the bodies of Neuronpedia's upload, each checked against its limits.

    Args:
        store: of text.
        W_dec: the decoder's rows.
        source: the names.
        folder: of the bodies; an earlier export there is replaced.
        labels: whether the labels are written as explanations.

    Returns:
        The latents that are left out, because they are never on: the service wants an example of each.

    Raises:
        ValueError: the store cannot be shown (see `batches_of_facts`), something else is there, or a body is beyond a
            limit.
        OSError: no space is left; an earlier export is untouched.
    """
    left_out: list[int] = []
    with new_folder(folder, "source-set.json") as unfinished:
        for number, facts in enumerate(batches_of_facts(store, W_dec, _WINDOW)):
            left_out += [each.latent for each in facts if not each.examples]
            features = [_feature(each, labels) for each in facts if each.examples]
            if features:
                body = {"modelId": source.model.lower(), "source": source.source, "features": features}
                check_batch(body)
                _write(unfinished / f"batch-{number}.json", body)
        _write(
            unfinished / "source-set.json",
            {
                "name": source.name,
                "modelId": source.model,
                "description": source.description or source.name,
                "url": source.url,
            },
        )
    return left_out


def _feature(facts: LatentFacts, labels: bool) -> dict[str, Any]:
    explanations = [facts.label[:_MOST_TEXT]] if labels and facts.label else []
    return {
        "index": facts.latent,
        "density": facts.density,
        "topLogits": _logits(facts.raised_tokens, facts.raised_values),
        "bottomLogits": _logits(facts.lowered_tokens, facts.lowered_values),
        # The names of methods and models are those that are registered at Neuronpedia.
        "explanations": [{"text": text, "methodName": None, "modelName": None} for text in explanations],
        "activations": [_activation(example) for example in facts.examples],
    }


def _logits(tokens: list[str], values: list[float]) -> list[dict[str, Any]]:
    return [{"token": token, "value": value} for token, value in zip(tokens, values, strict=True)]


def _activation(example: Example) -> dict[str, Any]:
    group = example.group
    # A share lies between 0 and 1 here; the top examples are the group without one.
    top = group.share < 0
    return {
        "tokens": example.tokens,
        "values": example.values,
        "quantileMin": group.least,
        "quantileMax": group.most,
        "quantileFraction": None if top else group.share,
    }


def check_batch(body: dict[str, Any]) -> None:
    """Check the body of an upload against the service's limits.

    Raises:
        ValueError: a limit that is broken, and where.
    """
    for name in ("modelId", "source"):
        _require(body[name] != "" and body[name] == body[name].lower(), name, "a lower-case name", body[name])
    features = body["features"]
    _require(1 <= len(features) <= BATCH, "features", f"1 to {BATCH} latents", f"{len(features)}")
    indices = [feature["index"] for feature in features]
    _require(len(set(indices)) == len(indices), "features", "different indices", indices)
    for number, feature in enumerate(features):
        at = f"features[{number}]"
        _require(0 <= feature["index"] <= _LARGEST_INDEX, f"{at}.index", f"0 to {_LARGEST_INDEX}", feature["index"])
        _require_between(feature["density"], 0, 1, f"{at}.density")
        for name in ("topLogits", "bottomLogits"):
            logits = feature[name]
            _require(len(logits) <= _MOST_LOGITS, f"{at}.{name}", f"at most {_MOST_LOGITS} tokens", f"{len(logits)}")
            for place, logit in enumerate(logits):
                _require_text(logit["token"], f"{at}.{name}[{place}].token")
                _require_between(logit["value"], -math.inf, math.inf, f"{at}.{name}[{place}].value")
        for place, explanation in enumerate(feature["explanations"]):
            length = len(explanation["text"])
            _require(
                1 <= length <= _MOST_TEXT,
                f"{at}.explanations[{place}].text", f"1 to {_MOST_TEXT} characters", f"{length}",
            )  # fmt: skip
        activations = feature["activations"]
        _require(len(activations) >= 1, f"{at}.activations", "an example or more", "none")
        for place, activation in enumerate(activations):
            _check_activation(activation, f"{at}.activations[{place}]")


def _check_activation(activation: dict[str, Any], at: str) -> None:
    tokens, values = activation["tokens"], activation["values"]
    _require(1 <= len(tokens) <= _MOST_TOKENS, f"{at}.tokens", f"1 to {_MOST_TOKENS} tokens", f"{len(tokens)}")
    _require(len(values) == len(tokens), f"{at}.values", f"as many as tokens ({len(tokens)})", f"{len(values)}")
    for number, (token, value) in enumerate(zip(tokens, values, strict=True)):
        _require_text(token, f"{at}.tokens[{number}]")
        _require_between(value, -math.inf, math.inf, f"{at}.values[{number}]")
    for name in ("quantileMin", "quantileMax"):
        _require_between(activation[name], -math.inf, _LARGEST_QUANTILE, f"{at}.{name}")
    if activation["quantileFraction"] is not None:
        _require_between(activation["quantileFraction"], 0, 1, f"{at}.quantileFraction")


def _require_text(text: str, at: str) -> None:
    _require(text != "", at, "a text", "an empty one")


def _require_between(number: float, least: float, most: float, at: str) -> None:
    limits = f"{least} to {most}" if least > -math.inf else f"at most {most}" if most < math.inf else "a number"
    _require(math.isfinite(number) and least <= number <= most, at, limits, number)


def _require(holds: bool, at: str, wanted: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{at} is {found}; Neuronpedia's upload takes {wanted}")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
