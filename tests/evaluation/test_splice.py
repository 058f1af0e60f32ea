import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.splice import ENTRIES_AT_ONCE, evaluate_parts, evaluate_splice
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import OtherModelSite, Site, SiteName
from fsae.sources.layout import Sites
from tests.architectures import ARCHITECTURES, build, each_architecture

SITE = Site(name=SiteName.resid_post, layer=2)
SITES = Sites((SITE,), (SITE,))
VOCABULARY, D_IN, ROWS, CONTEXT = 11, 5, 7, 6


class OneLayerModel:
    """Logits of a running mean of embeddings: positions see the ones before, as in a language model."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(VOCABULARY, D_IN, generator=generator, dtype=torch.float64).to(dtype)
        self.unembedding = torch.randn(D_IN, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype)
        self.rows_seen: list[int] = []

    def activations(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens]

    def logits(self, tokens: Tensor, *replacements: tuple[Site, Callable[[Tensor], Tensor]]) -> Tensor:
        self.rows_seen.append(len(tokens))
        x = self.activations(tokens)
        for site, function in replacements:
            assert site == SITE
            with torch.inference_mode():
                x = function(x)
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).unsqueeze(1)
        return 3 * (x.cumsum(1) / steps) @ self.unembedding


def some_tokens() -> Tensor:
    return torch.randint(VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(5))


def some_kept() -> Tensor:
    """All but the first position of each row and every token 3."""
    keep = some_tokens() != 3
    keep[:, 0] = False
    return keep


def identity() -> Autoencoder:
    """Reconstructs everything: x = relu(x) - relu(-x)."""
    autoencoder = StandardSettings(d_sae=2 * D_IN).build(D_IN, torch.Generator()).double().eval()
    rows = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
    return autoencoder


def constant(value: Tensor) -> Autoencoder:
    """Reconstructs `value` for every input."""
    autoencoder = StandardSettings(d_sae=2).build(D_IN, torch.Generator()).double().eval()
    with torch.no_grad():
        autoencoder.W_dec.zero_()
        autoencoder.b_dec.copy_(value)
    return autoencoder


def evaluated(
    autoencoder: Autoencoder,
    keep: Tensor | None = None,
    rows_at_once: int = 3,
    entries_at_once: int = ENTRIES_AT_ONCE,
) -> dict[str, float]:
    model, tokens = OneLayerModel(), some_tokens()
    keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
    mean = model.activations(tokens)[keep].mean(0)
    (numbers,) = evaluate_splice(
        model, SITES, [autoencoder], tokens, keep, mean, rows_at_once, entries_at_once=entries_at_once
    )
    return numbers


@each_architecture
@pytest.mark.parametrize("masked", [False, True], ids=["all_kept", "some_kept"])
def test_against_one_pass_with_all_logits(arch, masked):
    autoencoder, model, tokens = build(arch, D_IN).eval(), OneLayerModel(), some_tokens()
    keep = some_kept() if masked else torch.ones_like(tokens, dtype=torch.bool)
    x = model.activations(tokens)
    with torch.no_grad():
        vectors = {
            "base": x,
            "spliced": autoencoder(x.flatten(0, 1)).reconstruction.view_as(x),
            "zero": torch.zeros_like(x),
            "mean": x[keep].mean(0).expand_as(x),
        }
    log_p, ce = {}, {}
    for name, vector in vectors.items():
        replaced = torch.where(keep.unsqueeze(2), vector, x)
        log_p[name] = model.logits(tokens, (SITE, lambda _, replaced=replaced: replaced)).log_softmax(2)
        of_next = log_p[name][:, :-1].gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
        ce[name] = -of_next[keep[:, :-1]].mean().item()
    divergences = (log_p["base"].exp() * (log_p["base"] - log_p["spliced"])).sum(2)

    numbers = evaluated(autoencoder, keep)
    wanted = {f"ce_{name}": value for name, value in ce.items()}
    wanted["kl"] = divergences[keep].mean().item()
    wanted["ce_recovered_zero"] = (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["base"])
    wanted["ce_recovered_mean"] = (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["base"])
    # The softmax is taken in float32.
    assert numbers == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_by_hand():
    # One token of two is as likely as the other, until the activation is doubled: softmax(0, ln 3) = (1/4, 3/4).
    class TwoTokens:
        def logits(self, tokens, *replacements):
            x = torch.ones(*tokens.shape, 1)
            for _, function in replacements:
                x = function(x)
            return torch.cat([torch.zeros_like(x), (x - 1) * math.log(3)], dim=2)

    doubling = StandardSettings(d_sae=1).build(1, torch.Generator()).eval()
    with torch.no_grad():
        doubling.W_enc.fill_(1)
        doubling.W_dec.fill_(2)
    tokens = torch.tensor([[0, 1, 1, 0]])
    (numbers,) = evaluate_splice(TwoTokens(), SITES, [doubling], tokens, tokens >= 0, torch.tensor([3.0]), 1)
    assert numbers["ce_base"] == pytest.approx(math.log(2))
    # Next tokens 1, 1, 0 at probabilities 3/4, 3/4, 1/4.
    assert numbers["ce_spliced"] == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    # Zeros: softmax(0, -ln 3) = (3/4, 1/4). The mean, 3: softmax(0, ln 9) = (1/10, 9/10).
    assert numbers["ce_zero"] == pytest.approx((2 * math.log(4) + math.log(4 / 3)) / 3)
    assert numbers["ce_mean"] == pytest.approx((2 * math.log(10 / 9) + math.log(10)) / 3)
    assert numbers["kl"] == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))


@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 100])
@pytest.mark.parametrize("entries_at_once", [1, 3 * VOCABULARY, ENTRIES_AT_ONCE])
def test_portions_change_nothing(rows_at_once, entries_at_once):
    autoencoder = build("standard", D_IN).eval()
    whole = evaluated(autoencoder, some_kept(), rows_at_once=ROWS)
    portions = evaluated(autoencoder, some_kept(), rows_at_once, entries_at_once)
    assert portions == pytest.approx(whole, rel=1e-6)


def test_one_forward_pass_a_variant():
    model, tokens = OneLayerModel(), some_tokens()
    evaluate_splice(model, SITES, [identity()], tokens, tokens >= 0, torch.zeros(D_IN), rows_at_once=4)
    assert model.rows_seen == [4] * 4 + [3] * 4


def test_several_share_the_passes_that_are_the_same_and_get_what_each_gets_alone():
    model, tokens, keep = OneLayerModel(), some_tokens(), some_kept()
    autoencoders = [build(arch, D_IN).eval() for arch in ARCHITECTURES]
    mean = torch.full((D_IN,), 0.2, dtype=torch.float64)
    together = evaluate_splice(model, SITES, autoencoders, tokens, keep, mean, rows_at_once=ROWS)
    assert model.rows_seen == [ROWS] * (len(autoencoders) + 3)
    alone = [evaluate_splice(model, SITES, [each], tokens, keep, mean, rows_at_once=ROWS) for each in autoencoders]
    assert together == [numbers for (numbers,) in alone]
    assert len({numbers["ce_spliced"] for numbers in together}) > 1


@pytest.mark.parametrize("masked", [False, True], ids=["all_kept", "some_kept"])
def test_a_perfect_reconstruction_loses_nothing(masked):
    numbers = evaluated(identity(), some_kept() if masked else None)
    assert numbers["ce_recovered_zero"] == pytest.approx(1)
    assert numbers["ce_recovered_mean"] == pytest.approx(1)
    assert numbers["kl"] == pytest.approx(0, abs=1e-9)


def test_reconstructing_zeros_or_the_mean_recovers_nothing():
    model, tokens = OneLayerModel(), some_tokens()
    zero = evaluated(constant(torch.zeros(D_IN)))
    assert zero["ce_recovered_zero"] == pytest.approx(0)
    assert zero["ce_spliced"] == zero["ce_zero"]
    mean = evaluated(constant(model.activations(tokens).flatten(0, 1).mean(0)))
    assert mean["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)


def test_positions_left_out_keep_the_models_own_activations():
    tokens, seen = some_tokens(), []

    class Recording(OneLayerModel):
        def logits(self, tokens, *replacements):
            for _, function in replacements:
                x = self.activations(tokens)
                seen.append((x, function(x)))
            return super().logits(tokens, *replacements)

    keep = some_kept()
    mean = torch.full((D_IN,), 0.5, dtype=torch.float64)
    evaluate_splice(Recording(), SITES, [constant(mean + 1)], tokens, keep, mean, rows_at_once=ROWS)
    # The first pass only looks.
    assert torch.equal(*seen[0])
    assert len(seen) == 4
    for (x, replaced), value in zip(seen[1:], (mean + 1, torch.zeros(D_IN), mean), strict=True):
        assert torch.equal(replaced[~keep], x[~keep])
        assert torch.equal(replaced[keep], value.double().expand_as(replaced[keep]))


def test_a_model_in_half_precision_is_summed_in_single():
    model, tokens = OneLayerModel(dtype=torch.bfloat16), some_tokens()
    (numbers,) = evaluate_splice(model, SITES, [identity().float()], tokens, tokens >= 0, torch.zeros(D_IN), 2)
    of_next = model.logits(tokens).float().log_softmax(2)[:, :-1].gather(2, tokens[:, 1:].unsqueeze(2))
    assert numbers["ce_base"] == pytest.approx(-of_next.mean().item(), rel=1e-6)
    # bfloat16 values pass through the float32 autoencoder unchanged.
    assert numbers["kl"] == 0


@pytest.mark.parametrize("kept", [[], [CONTEXT - 1]], ids=["none", "last_only"])
def test_nothing_to_predict_is_refused(kept):
    keep = torch.zeros(ROWS, CONTEXT, dtype=torch.bool)
    keep[:, kept] = True
    with pytest.raises(ValueError, match=f"none of the {ROWS * CONTEXT} held-out tokens"):
        evaluated(identity(), keep)


def test_activations_that_are_no_numbers_are_refused():
    model, tokens = OneLayerModel(), some_tokens()
    model.embedding[tokens[0, 2]] = math.nan
    with pytest.raises(ValueError, match=r"activations at resid_post\.2 .* not finite"):
        evaluate_splice(model, SITES, [identity()], tokens, tokens >= 0, torch.zeros(D_IN), 2)


def test_a_norm_limit_is_a_mask_of_the_long_vectors():
    tokens, long = some_tokens(), 7
    model = OneLayerModel()
    model.embedding[long] *= 50
    keep = some_kept()
    short = keep & (tokens != long)
    assert short.sum() < keep.sum()
    mean = model.activations(tokens)[short].mean(0)
    autoencoder = build("gated").eval()
    limit = 10 * float(model.activations(tokens)[keep].norm(dim=1).median())
    (limited,) = evaluate_splice(model, SITES, [autoencoder], tokens, keep, mean, 3, norm_limits=[limit])
    (masked,) = evaluate_splice(model, SITES, [autoencoder], tokens, short, mean, 3)
    (everything,) = evaluate_splice(model, SITES, [autoencoder], tokens, keep, mean, 3)
    assert limited == masked
    assert limited != everything


def test_a_limit_that_nothing_exceeds_changes_nothing():
    model, tokens, keep = OneLayerModel(), some_tokens(), some_kept()
    mean = model.activations(tokens)[keep].mean(0)
    without, with_one = (
        evaluate_splice(model, SITES, [identity()], tokens, keep, mean, 3, norm_limits=limits)
        for limits in (None, [1e6])
    )
    assert without == with_one


def test_a_limit_that_leaves_nothing_is_refused():
    model, tokens, keep = OneLayerModel(), some_tokens(), some_kept()
    with pytest.raises(ValueError, match=r"none of the .* held-out tokens"):
        evaluate_splice(model, SITES, [identity()], tokens, keep, torch.zeros(D_IN), 3, norm_limits=[1e-9])


A, B = Site(name=SiteName.mlp_in, layer=2), Site(name=SiteName.mlp_out, layer=2)


class TwoSiteModel(OneLayerModel):
    """Logits of activations at A and of B = A @ through."""

    through = torch.linspace(-1, 1, D_IN * D_IN, dtype=torch.float64).view(D_IN, D_IN)

    def logits(self, tokens: Tensor, *replacements: tuple[Site, Callable[[Tensor], Tensor]]) -> Tensor:
        at = dict(replacements)
        x = at.get(A, lambda x: x)(self.activations(tokens))
        return (x + at.get(B, lambda x: x)(x @ self.through)) @ self.unembedding


def between_sites(written: Tensor, ends: Ends) -> Autoencoder:
    """Reconstructs x @ written."""
    autoencoder = StandardSettings(d_sae=2 * D_IN).build(ends, torch.Generator()).double().eval()
    rows = torch.cat([torch.eye(D_IN, dtype=torch.float64), -torch.eye(D_IN, dtype=torch.float64)])
    with torch.no_grad():
        autoencoder.W_enc.copy_(torch.nn.functional.pad(rows, (0, ends.input.width - D_IN)).T)
        autoencoder.W_dec.copy_(rows @ written)
    return autoencoder


def test_a_transcoder_reads_one_site_and_is_spliced_at_the_other():
    model, tokens, keep = TwoSiteModel(), some_tokens(), some_kept()
    ends = Ends(input=Layout.of(D_IN, "mlp_in.2"), target=Layout.of(D_IN, "mlp_out.2"))
    mean = (model.activations(tokens) @ model.through)[keep].mean(0)
    exact, doubled = (between_sites(factor * model.through, ends) for factor in (1, 2))
    right, wrong = evaluate_splice(model, Sites((A,), (B,)), [exact, doubled], tokens, keep, mean, 3)
    assert right["kl"] == pytest.approx(0, abs=1e-9)
    assert right["ce_spliced"] == pytest.approx(right["ce_base"])
    # By hand: the output is doubled at the kept positions, and the input stays.
    x = model.activations(tokens)
    y = x @ model.through
    log_p = ((x + torch.where(keep.unsqueeze(2), 2 * y, y)) @ model.unembedding).log_softmax(2)
    of_next = log_p[:, :-1].gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
    assert wrong["ce_spliced"] == pytest.approx(-of_next[keep[:, :-1]].mean().item(), rel=1e-4)


def test_each_model_is_spliced_at_its_own_site():
    one, two, tokens, keep = TwoSiteModel(), TwoSiteModel(), some_tokens(), some_kept()
    two.unembedding = -one.unembedding
    elsewhere = OtherModelSite(name=A.name, layer=A.layer, model=ModelSettings(package=Package.tiny))
    # It reconstructs the first model's activations, and half of the second one's.
    unit = torch.eye(D_IN, dtype=torch.float64)
    both, single = Layout((("one", D_IN), ("two", D_IN))), Layout.of(D_IN, "one")
    crosscoder = between_sites(torch.cat([unit, unit / 2], dim=1), Ends(input=both, target=both))
    mean = one.activations(tokens)[keep].mean(0)
    arguments = tokens, keep, torch.cat([mean, mean]), 3
    sites = Sites((A, elsewhere), (A, elsewhere))
    (found,) = evaluate_parts(one, sites, [crosscoder], *arguments, model_at=lambda site: one if site == A else two)
    for part, model, factor in ((0, one, 1.0), (1, two, 0.5)):
        alone = between_sites(factor * unit, Ends(input=single, target=single))
        (numbers,) = evaluate_splice(model, Sites((A,), (A,)), [alone], tokens, keep, mean, 3)
        assert found[part] == pytest.approx(numbers)


def test_a_crosscoder_is_spliced_at_one_site_at_a_time():
    model, tokens, keep = TwoSiteModel(), some_tokens(), some_kept()
    both = Layout((("mlp_in.2", D_IN), ("mlp_out.2", D_IN)))
    # It reconstructs A, and half of B.
    written = torch.cat([torch.eye(D_IN, dtype=torch.float64), model.through / 2], dim=1)
    crosscoder = between_sites(written, Ends(input=both, target=both))
    x = model.activations(tokens)
    mean = torch.cat([x, x @ model.through], dim=2)[keep].mean(0)
    arguments = model, Sites((A, B), (A, B)), [crosscoder], tokens, keep, mean, 3
    (parts,) = evaluate_parts(*arguments)
    assert parts[0]["ce_spliced"] == pytest.approx(parts[0]["ce_base"])
    assert parts[1]["kl"] > 1e-3
    assert parts[0]["ce_zero"] != parts[1]["ce_zero"]
    (means,) = evaluate_splice(*arguments)
    assert means["kl"] == pytest.approx((parts[0]["kl"] + parts[1]["kl"]) / 2)
