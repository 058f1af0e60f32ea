"""Interventions: what an edit changes, at which positions, and that nothing of it remains."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends, Layout
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from fsae.language_models.left_out import LeftOut
from fsae.language_models.settings import DType, ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.sparse.codes import Codes
from tests.architectures import ARCHITECTURES, FITTED, build, fitted

D_IN, D_SAE = 5, 14
# Those at which activations can be replaced.
SITES = [site for site in (Site(name=name, layer=1) for name in SiteName) if site.weighted is None]
NOTHING: list[list[Edit]] = [[], [Scale(2, by=1.0)], [Add(2, 0.0)], [Scale(0, by=1.0), Add(1, 0.0, unit="absolute")]]
# Edits of a latent, and what they make of its codes if its largest activation is 2.
CHANGES: dict[str, tuple[Callable[..., Edit], Callable[[Tensor], Tensor]]] = {
    "ablate": (Ablate, torch.zeros_like),
    "scale": (partial(Scale, by=3.0), lambda codes: 3 * codes),
    "add": (partial(Add, strength=1.5), lambda codes: codes + 3),
    "clamp": (partial(Clamp, strength=1.5), lambda codes: torch.full_like(codes, 3)),
}

each_site = pytest.mark.parametrize("site", SITES, ids=str)
every_architecture = pytest.mark.parametrize("arch", [*ARCHITECTURES, *FITTED])


def autoencoder_of(arch: str, d_in: int = D_IN, dtype: torch.dtype = torch.float32) -> Autoencoder:
    made = fitted(arch, d_in, dtype) if arch in FITTED else build(arch, d_in, D_SAE, dtype=dtype)
    return made.eval()


def intervention_of(
    autoencoder: Autoencoder, *edits: Edit, site: Site = SITES[0], unit: float = 2.0, **more: Any
) -> Intervention:
    return Intervention(autoencoder, site, edits, largest=dict.fromkeys(range(D_SAE), unit), **more)


def rows(count: int = 2, length: int = 7) -> Tensor:
    return torch.randint(1, 200, (count, length), generator=torch.Generator().manual_seed(0))


def vectors(dtype: torch.dtype = torch.float64) -> Tensor:
    """(2, 7, D_IN)"""
    return torch.randn(2, 7, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def changed(*edits: Edit, of: ForwardPass | None = None, **more: Any) -> list[list[bool]]:
    """Which positions of a pass the edits change, row by row."""
    forward_pass = of or ForwardPass.over(rows())
    x = vectors()[:, : forward_pass.tokens.shape[1] - forward_pass.first]
    autoencoder = autoencoder_of("standard", dtype=torch.float64)
    return (intervention_of(autoencoder, *edits, **more).edited(forward_pass, x) != x).any(2).tolist()


@every_architecture
@pytest.mark.parametrize("kind", CHANGES)
def test_the_result_is_the_decoded_edited_codes_and_the_error(arch: str, kind: str):
    autoencoder, x = autoencoder_of(arch, dtype=torch.float64), vectors()
    flat = x.flatten(0, 1)
    codes = autoencoder.encode(flat).codes.dense()
    error = flat - autoencoder.decode(Codes(codes))
    latent = int(codes.count_nonzero(0).argmax())
    make, new = CHANGES[kind]
    wanted = codes.clone()
    wanted[:, latent] = new(codes[:, latent])
    assert not torch.equal(wanted, codes)
    result = intervention_of(autoencoder, make(latent)).edited(ForwardPass.over(rows()), x)
    torch.testing.assert_close(result.flatten(0, 1), autoencoder.decode(Codes(wanted)) + error)


def test_the_error_does_not_cancel_an_edit():
    """An error that was taken from the edited reconstruction would give x back, whatever the edit."""
    autoencoder, x = autoencoder_of("standard"), vectors(torch.float32)
    result = intervention_of(autoencoder, Add(4, 2.5)).edited(ForwardPass.over(rows()), x)
    # 2.5 units of 2 in the direction of the latent's decoder row.
    torch.testing.assert_close(result - x, (5 * autoencoder.W_dec[4]).expand_as(x), rtol=1e-4, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("edits", NOTHING, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_of_nothing_changes_no_bit_of_the_activations(arch: str, edits: list[Edit], dtype: torch.dtype):
    x = vectors(dtype)
    x[0, 0, 0] = -0.0
    with torch.no_grad():
        result = intervention_of(autoencoder_of(arch), *edits).edited(ForwardPass.over(rows()), x)
    kind = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(result.view(kind), x.view(kind))


def test_an_ablated_latent_that_is_off_changes_no_bit():
    autoencoder, x = autoencoder_of("topk"), vectors(torch.float32)
    codes = autoencoder.encode(x.flatten(0, 1)).codes.dense().view(2, 7, D_SAE)
    result = intervention_of(autoencoder, Ablate(2)).edited(ForwardPass.over(rows()), x)
    off = codes[:, :, 2] == 0
    assert off.any()
    assert not off.all()
    assert torch.equal(result[off], x[off])
    assert (result[~off] != x[~off]).any(1).all()


def test_edits_of_one_latent_act_in_their_order():
    autoencoder, x, forward_pass = autoencoder_of("standard", dtype=torch.float64), vectors(), ForwardPass.over(rows())
    one = intervention_of(autoencoder, Clamp(2, 1.0), Scale(2, by=3.0), Add(2, -0.5)).edited(forward_pass, x)
    torch.testing.assert_close(one, intervention_of(autoencoder, Clamp(2, 2.5)).edited(forward_pass, x))


def test_edits_of_several_latents_add_up():
    autoencoder, x, forward_pass = autoencoder_of("gated", dtype=torch.float64), vectors(), ForwardPass.over(rows())
    edits = [Ablate(7), Add(1, 0.5), Clamp(12, 2.0)]
    together = intervention_of(autoencoder, *edits).edited(forward_pass, x)
    alone = [intervention_of(autoencoder, edit).edited(forward_pass, x) - x for edit in edits]
    torch.testing.assert_close(together, x + sum(alone))


def test_an_absolute_strength_is_in_the_code_s_unit():
    autoencoder, x, forward_pass = autoencoder_of("standard"), vectors(torch.float32), ForwardPass.over(rows())
    relative = intervention_of(autoencoder, Add(2, 1.5), unit=4.0).edited(forward_pass, x)
    absolute = Intervention(autoencoder, SITES[0], [Add(2, 6.0, unit="absolute")], largest={})
    assert torch.equal(absolute.edited(forward_pass, x), relative)


def test_each_scope_has_its_positions():
    of = ForwardPass.over(rows(), prompt=4)
    prompt = [True] * 4 + [False] * 3
    assert changed(Add(2, 1.0), of=of) == [[True] * 7] * 2
    assert changed(Add(2, 1.0, scope="prompt"), of=of) == [prompt] * 2
    assert changed(Add(2, 1.0, scope="generated"), of=of) == [[not each for each in prompt]] * 2
    assert changed(Add(2, 1.0, scope="last"), of=of) == [[place == 3 for place in range(7)]] * 2
    # Text that is only read is a prompt.
    assert changed(Add(2, 1.0, scope="last")) == [[place == 6 for place in range(7)]] * 2
    assert changed(Add(2, 1.0, scope="generated")) == [[False] * 7] * 2


def test_the_positions_after_a_token_begin_behind_its_first_occurrence():
    tokens = rows()
    tokens[0, [2, 5]] = 250
    of = ForwardPass.over(tokens, prompt=4)
    assert changed(Add(2, 1.0, after=250), of=of) == [[False] * 3 + [True] * 4, [False] * 7]
    both = changed(Add(2, 1.0, after=250, scope="prompt"), of=of)
    assert both == [[place == 3 for place in range(7)], [False] * 7]


def test_padding_is_not_edited_and_not_counted():
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, :3] = False
    real[1, 5:] = False
    of = ForwardPass(rows(), real, real)
    assert changed(Add(2, 1.0), of=of) == real.tolist()
    last = [[place == 6 for place in range(7)], [place == 4 for place in range(7)]]
    assert changed(Add(2, 1.0, scope="last"), of=of) == last
    assert changed(Add(2, 1.0), of=of, left_out=LeftOut(positions=1)) == [
        [False] * 4 + [True] * 3,
        [False] + [True] * 4 + [False] * 2,
    ]


def test_a_marker_in_the_padding_is_no_marker():
    tokens, real = rows(), torch.ones(2, 7, dtype=torch.bool)
    tokens[:, 1], real[0, :2] = 250, False
    of = ForwardPass(tokens, real, real)
    assert changed(Add(2, 1.0, after=250), of=of) == [[False] * 7, [False] * 2 + [True] * 5]


def test_tokens_that_training_left_out_are_not_edited():
    tokens = rows()
    tokens[0, 6] = 0
    of = ForwardPass.over(tokens)
    assert changed(Add(2, 1.0), of=of, left_out=LeftOut(frozenset({0}))) == [[True] * 6 + [False], [True] * 7]
    # The last one is the last that counts.
    last = changed(Add(2, 1.0, scope="last"), of=of, left_out=LeftOut(frozenset({0})))
    assert last == [[place == 5 for place in range(7)], [place == 6 for place in range(7)]]


def test_massive_activations_are_not_edited():
    norms = vectors().norm(dim=2)
    limit = float(norms.median())
    assert changed(Add(2, 1.0), left_out=LeftOut(norm_limit=limit)) == (norms <= limit).tolist()


def test_an_edit_decays_over_the_positions_of_its_scope():
    of = ForwardPass.over(rows(), prompt=4)
    autoencoder, x = autoencoder_of("standard", dtype=torch.float64), vectors()
    edit = Clamp(2, 1.0, scope="generated", decay=0.5)
    result = intervention_of(autoencoder, edit).edited(of, x) - x
    whole = intervention_of(autoencoder, Clamp(2, 1.0)).edited(of, x) - x
    share = torch.tensor([0, 0, 0, 0, 1, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(result, whole * share[:, None])


@pytest.mark.parametrize("scope", ["all", "prompt", "generated", "last"])
@pytest.mark.parametrize("after", [None, 250])
def test_a_pass_with_a_cache_edits_as_the_whole_pass_does(scope: Any, after: int | None):
    tokens, x = rows(), vectors()
    tokens[0, 2] = tokens[1, 5] = 250
    whole = ForwardPass.over(tokens, prompt=4)
    autoencoder = autoencoder_of("standard", dtype=torch.float64)
    edit = Add(2, 1.0, scope=scope, after=after, decay=0.9)
    intervention = intervention_of(autoencoder, edit, left_out=LeftOut(positions=1))
    parts = [ForwardPass.over(tokens[:, :4])]
    for place in range(4, 7):
        parts.append(parts[-1].followed_by(tokens[:, place], cached=True))
    assert [part.first for part in parts] == [0, 4, 5, 6]
    pieces = [intervention.edited(part, x[:, part.first : part.tokens.shape[1]]) for part in parts]
    torch.testing.assert_close(torch.cat(pieces, dim=1), intervention.edited(whole, x))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return rows(2, 9)


@pytest.fixture(scope="module", params=list(DType)[1:], ids=lambda dtype: dtype.name)
def model(request: pytest.FixtureRequest) -> TransformerLensModel:
    return open_language_model(ModelSettings(package=Package.tiny, dtype=request.param))


@each_site
@pytest.mark.parametrize("edits", NOTHING, ids=str)
def test_an_edit_of_nothing_changes_no_bit_of_the_logits(
    model: TransformerLensModel, site: Site, edits: list[Edit], tokens: Tensor
):
    intervention = intervention_of(autoencoder_of("topk", model.width(site)), *edits, site=site)
    edited = model.logits(tokens, *intervention.within(ForwardPass.over(tokens)))
    assert torch.equal(edited, model.logits(tokens))


@each_site
@pytest.mark.parametrize("kind", CHANGES)
def test_an_edit_changes_the_logits_from_its_position_on(
    tiny: TransformerLensModel, site: Site, kind: str, tokens: Tensor
):
    autoencoder = autoencoder_of("standard", tiny.width(site))
    x = tiny.activations(tokens, [site])[site]
    codes = autoencoder.encode(x.flatten(0, 1)).codes.dense().view(2, 9, D_SAE)
    latent, marker = int(codes[0, 4].argmax()), int(tokens[0, 3])
    assert marker not in tokens[0, :3].tolist()
    intervention = intervention_of(autoencoder, CHANGES[kind][0](latent, after=marker), site=site)
    plain, edited = tiny.logits(tokens), tiny.logits(tokens, *intervention.within(ForwardPass.over(tokens)))
    assert torch.equal(edited[0, :4], plain[0, :4])
    assert (edited[0, 4:] - plain[0, 4:]).abs().amax(1).min() > 1e-4


@each_site
def test_an_edit_equals_the_replacement_by_hand(tiny: TransformerLensModel, site: Site, tokens: Tensor):
    autoencoder = autoencoder_of("gated", tiny.width(site))
    intervention = intervention_of(autoencoder, Clamp(5, 1.5), Ablate(0), site=site)

    def by_hand(x: Tensor) -> Tensor:
        record = autoencoder(x.flatten(0, 1))
        codes = record.codes.dense().clone()
        codes[:, 5], codes[:, 0] = 3.0, 0.0
        return (autoencoder.decode(Codes(codes)) + (x.flatten(0, 1) - record.reconstruction)).view_as(x)

    edited = tiny.logits(tokens, *intervention.within(ForwardPass.over(tokens)))
    torch.testing.assert_close(edited, tiny.logits(tokens, (site, by_hand)), rtol=1e-3, atol=1e-3)


def test_all_sites_are_edited_together_in_the_order_of_the_pass(tiny: TransformerLensModel, tokens: Tensor):
    seen: dict[Site, Tensor] = {}
    forward_pass = ForwardPass.over(tokens)
    edited = {
        site: intervention_of(autoencoder_of("standard", tiny.width(site)), Add(2, 1.0), site=site) for site in SITES
    }

    def watched(site: Site):
        def replacement(x: Tensor) -> Tensor:
            seen[site] = x.clone()
            return edited[site].edited(forward_pass, x)

        return site, replacement

    tiny.logits(tokens, *map(watched, reversed(SITES)))
    assert list(seen) == sorted(SITES, key=lambda site: site.place)
    # What arrives at the block's end has the change of its middle.
    middle, end = (Site(name=name, layer=1) for name in (SiteName.resid_mid, SiteName.resid_post))
    mlp = Site(name=SiteName.mlp_out, layer=1)
    stream = edited[middle].edited(forward_pass, seen[middle]) + edited[mlp].edited(forward_pass, seen[mlp])
    torch.testing.assert_close(seen[end], stream, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", [SiteName.mlp_in, SiteName.resid_mid, SiteName.mlp_normalized])
def test_edit_of_a_transcoder_changes_the_site_that_it_writes(
    tiny: TransformerLensModel, read: SiteName, tokens: Tensor
):
    site, written, end = (Site(name=name, layer=1) for name in (read, SiteName.mlp_out, SiteName.resid_post))
    d_in, d_out = tiny.width(site), tiny.width(written)
    ends = Ends(input=Layout.of(d_in, str(site)), target=Layout.of(d_out, str(written)))
    transcoder = build("standard", ends, D_SAE, dtype=torch.float32).eval()
    of = ForwardPass.over(tokens)
    plain = tiny.activations(tokens, [site, written, end])

    nothing = intervention_of(transcoder, Scale(2, by=1.0), site=site, written=written).within(of)
    assert torch.equal(tiny.logits(tokens, *nothing), tiny.logits(tokens))

    edits = intervention_of(transcoder, Add(2, 1.0), site=site, written=written).within(of)
    edited = tiny.activations(tokens, [site, written, end], *edits)
    assert torch.equal(edited[site], plain[site])
    # The largest activation is 2, so the code grows by 2 at every position.
    change = 2 * transcoder.W_dec[2]
    torch.testing.assert_close(edited[written], plain[written] + change, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(edited[end], plain[end] + change, rtol=1e-5, atol=1e-5)

    ablated = intervention_of(transcoder, Ablate(2), site=site, written=written).within(of)
    codes = transcoder.encode(plain[site].flatten(0, 1)).codes.dense()[:, 2].unflatten(0, tokens.shape)
    assert (codes > 0).any()
    found = tiny.activations(tokens, [written], *ablated)[written]
    torch.testing.assert_close(found, plain[written] - codes[..., None] * transcoder.W_dec[2], rtol=1e-5, atol=1e-5)


@each_site
def test_edited_activations_are_read_at_the_site_and_after_it(tiny: TransformerLensModel, site: Site, tokens: Tensor):
    intervention = intervention_of(autoencoder_of("standard", tiny.width(site)), Add(2, 1.0), site=site)
    end = Site(name=SiteName.resid_post, layer=3)
    plain = tiny.activations(tokens, [site, end])
    read = tiny.activations(tokens, [site, end], *intervention.within(ForwardPass.over(tokens)))
    assert torch.equal(read[site], intervention.edited(ForwardPass.over(tokens), plain[site]))
    assert not torch.equal(read[end], plain[end])


@each_site
def test_nothing_remains_after_a_pass_that_fails(tiny: TransformerLensModel, site: Site, tokens: Tensor):
    plain = tiny.logits(tokens)

    class Stop(Exception):  # noqa: N818
        pass

    def fail(x: Tensor) -> Tensor:
        raise Stop

    working = intervention_of(autoencoder_of("standard", tiny.width(site)), Add(2, 1.0), site=site)
    late = Site(name=SiteName.resid_post, layer=3)
    with pytest.raises(Stop):
        tiny.logits(tokens, *working.within(ForwardPass.over(tokens)), (late, fail))
    assert torch.equal(tiny.logits(tokens), plain)
    hooks = tiny._bridge.hook_dict.values()
    assert not any(hook.fwd_hooks for hook in hooks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate(-1), "Ablate.latent is -1; it must be the index of a latent, at least 0"),
        (lambda: Scale(1, by=-2.0), "Scale.by is -2; it must be at least 0"),
        (lambda: Add(1, float("nan")), "Add.strength is nan"),
        (lambda: Add(1, 1.0, decay=0.0), "Add.decay is 0; it must be above 0 and at most 1"),
        (lambda: Clamp(1, 1.0, scope="first"), "Clamp.scope is 'first'; it must be one of all, prompt"),  # pyright: ignore[reportArgumentType]
        (lambda: Clamp(1, 1.0, unit="max"), "Clamp.unit is 'max'; it must be one of largest, absolute"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_edit_that_cannot_be_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "largest", "message"),
    [
        (Ablate(14), {}, "Ablate.latent is 14; the dictionary has the latents 0 to 13"),
        (Add(3, 1.0), {}, r"Add: the largest activation of latent 3 is unknown; give it with largest=\{3: ...\}"),
        (Clamp(3, 1.0), {3: 0.0}, "Clamp: latent 3 is active on none of the samples"),
    ],
)
def test_an_edit_that_does_not_fit_the_dictionary_is_refused(edit: Edit, largest: dict[int, float], message: str):
    with pytest.raises(ValueError, match=message):
        Intervention(autoencoder_of("standard"), SITES[0], [edit], largest=largest)
