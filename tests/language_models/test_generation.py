"""Generation: with a cache as without, several prompts as each alone, edits included."""

from typing import Any

import pytest
import torch

from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.generation import Sampling, generate
from fsae.language_models.interventions import Add, Clamp, Edit, Intervention
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel
from tests.architectures import build

SITES = [Site(name=name, layer=1) for name in SiteName]
PROMPTS = [[72, 101, 108, 108, 111], [40, 250], [90, 91, 92, 93, 94, 95, 96]]


def intervention_of(tiny: TransformerLensModel, *edits: Edit, site: Site = SITES[0]) -> Intervention:
    autoencoder = build("topk", tiny.width(site), 13, dtype=torch.float32).eval()
    return Intervention(autoencoder, site, edits, largest=dict.fromkeys(range(13), 2.0))


def generated(tiny: TransformerLensModel, *interventions: Intervention, prompts=PROMPTS, **how: Any) -> list[list[int]]:
    cached = how.pop("cached", True)
    sampling = Sampling(**{"tokens": 12, **how})
    return generate(
        tiny, prompts, sampling, lambda of: [made for each in interventions for made in each.within(of)], cached=cached
    )


def test_text_is_that_of_the_model_s_own_logits(tiny: TransformerLensModel):
    row = [*PROMPTS[0], *generated(tiny, prompts=PROMPTS[:1], temperature=0)[0]]
    logits = tiny.logits(torch.tensor([row]))[0]
    assert row[5:] == logits[4:-1].argmax(1).tolist()


@pytest.fixture(scope="module")
def plain(tiny: TransformerLensModel) -> dict[int, list[list[int]]]:
    """The text without interventions, by temperature."""
    return {temperature: generated(tiny, temperature=temperature) for temperature in (0, 1)}


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("scope", ["all", "prompt", "generated", "last"])
def test_a_cache_changes_no_token(
    tiny: TransformerLensModel, plain: dict[int, list[list[int]]], site: Site, scope: Any
):
    edit = Add(3, 2.0, scope=scope, decay=0.9)
    edited = intervention_of(tiny, edit, site=site)
    for temperature in (0, 1):
        cached, whole = (generated(tiny, edited, temperature=temperature, cached=each) for each in (True, False))
        assert cached == whole
        assert cached != plain[temperature]


def test_a_cache_changes_no_token_after_a_token_that_is_generated(tiny: TransformerLensModel):
    plain = generated(tiny, prompts=PROMPTS[:1], temperature=0)[0]
    marker = plain[3]
    begin = plain.index(marker)
    edited = intervention_of(tiny, Clamp(3, 4.0, after=marker))
    cached, whole = (generated(tiny, edited, prompts=PROMPTS[:1], temperature=0, cached=each) for each in (True, False))
    assert cached == whole
    # The first edited position is the one after the marker; it predicts the second token after it.
    assert cached[0][: begin + 2] == plain[: begin + 2]
    assert cached[0] != plain


def test_edits_of_generated_positions_leave_the_first_generated_token(tiny: TransformerLensModel):
    plain = generated(tiny, temperature=0)
    steered = generated(tiny, intervention_of(tiny, Clamp(3, 20.0, scope="generated")), temperature=0)
    assert [row[0] for row in steered] == [row[0] for row in plain]
    assert steered != plain


@pytest.mark.parametrize("scope", ["all", "last", "generated"])
def test_prompts_of_several_lengths_are_continued_as_each_alone(tiny: TransformerLensModel, scope: Any):
    assert tiny.accepts_padding
    edited = intervention_of(tiny, Add(3, 2.0, scope=scope, decay=0.9))
    together = generated(tiny, edited, temperature=0)
    assert together == [generated(tiny, edited, prompts=[prompt], temperature=0)[0] for prompt in PROMPTS]


def test_models_without_padding_continue_each_prompt_alone(tiny: TransformerLensModel, monkeypatch: pytest.MonkeyPatch):
    together = generated(tiny)
    passes = []
    next_logits = tiny.next_logits
    monkeypatch.setattr(tiny, "accepts_padding", False)
    monkeypatch.setattr(tiny, "next_logits", lambda of, *rest: passes.append(of.real) or next_logits(of, *rest))
    assert generated(tiny) == together
    assert all(real.all() for real in passes)


def test_a_model_without_a_cache_reads_whole_rows(tiny: TransformerLensModel, monkeypatch: pytest.MonkeyPatch):
    edited = intervention_of(tiny, Add(3, 2.0))
    usual, widths = generated(tiny, edited), []
    next_logits = tiny.next_logits

    def without_cache(of: ForwardPass, cache: Any, *replacements: Any):
        widths.append(of.tokens.shape[1] - of.first)
        return next_logits(of, cache, *replacements)[0], None

    monkeypatch.setattr(tiny, "next_logits", without_cache)
    assert generated(tiny, edited) == usual
    assert widths == list(range(7, 7 + len(widths)))


def test_a_seed_decides_the_draws_of_each_row(tiny: TransformerLensModel):
    twice = [PROMPTS[0], PROMPTS[0]]
    first, again, other = (generated(tiny, prompts=twice, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1]
    assert first[0] == generated(tiny, prompts=PROMPTS[:1], seed=1)[0]


def test_drawing_leaves_the_global_generator_alone(tiny: TransformerLensModel):
    state = torch.get_rng_state()
    generated(tiny)
    assert torch.equal(torch.get_rng_state(), state)


def test_text_ends_before_an_id_that_ends_it(tiny: TransformerLensModel, monkeypatch: pytest.MonkeyPatch):
    whole = generated(tiny, temperature=0)
    end = whole[0][4]
    monkeypatch.setattr(tiny, "end_ids", frozenset({end}))
    for row, cut in zip(whole, generated(tiny, temperature=0), strict=True):
        assert cut == (row[: row.index(end)] if end in row else row)


@pytest.mark.parametrize(
    ("prompts", "how", "message"),
    [
        ([[1, 2], []], {}, "prompt 1 has no token"),
        ([[1] * 250], {}, "prompt 0 has 250 tokens; with 12 generated ones that is more than the 256 that model tiny"),
        (PROMPTS, {"temperature": -1.0}, "generate.temperature is -1"),
        (PROMPTS, {"tokens": 0}, "generate.tokens is 0"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    tiny: TransformerLensModel, prompts: list[list[int]], how: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        generated(tiny, prompts=prompts, **how)


def test_nothing_remains_after_a_step_that_fails(tiny: TransformerLensModel):
    plain, steps = generated(tiny), []
    working = intervention_of(tiny, Add(3, 2.0), site=Site(name=SiteName.resid_mid, layer=1))

    def replacements(of: ForwardPass):
        steps.append(of)
        late = (Site(name=SiteName.resid_post, layer=3), lambda x: 1 / 0)
        return [*working.within(of), *([late] if len(steps) == 3 else [])]

    with pytest.raises(ZeroDivisionError):
        generate(tiny, PROMPTS, Sampling(tokens=12), replacements)
    assert len(steps) == 3
    assert not any(hook.fwd_hooks for hook in tiny._bridge.hook_dict.values())
    assert generated(tiny) == plain
