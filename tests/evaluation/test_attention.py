"""`eval.attention` on the tiny model, whose four heads share two sets of values."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.attention import AttentionHeads
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.settings import Package
from fsae.language_models.sites import Site, SiteName
from tests.architectures import build
from tests.language_models.conftest import opened

LAYER, HEADS, D_HEAD = 2, 4, 8
ROWS = torch.randint(1, 200, (6, 10), generator=torch.Generator().manual_seed(0))
Z, OUT = (Site(name=name, layer=LAYER) for name in (SiteName.attn_z, SiteName.attn_out))


def planted() -> Autoencoder:
    """Latent i reads the first dimension of head i alone, in both directions, and writes there."""
    autoencoder = StandardSettings(d_sae=2 * HEADS).build(HEADS * D_HEAD, torch.Generator()).eval()
    with torch.no_grad():
        autoencoder.W_enc.zero_()
        autoencoder.W_dec.zero_()
        for head in range(HEADS):
            for latent, sign in ((head, 1.0), (HEADS + head, -1.0)):
                autoencoder.W_enc[D_HEAD * head, latent] = sign
                autoencoder.W_dec[latent, D_HEAD * head] = sign
    return autoencoder


def measured(*autoencoders: Autoencoder, site: Site = Z, rows: torch.Tensor = ROWS, **changes: Any) -> Measured:
    keep = torch.ones_like(rows, dtype=torch.bool)
    keep[:, 0] = False
    text = SimpleNamespace(
        model=opened(Package.tiny), site=site, rows_at_once=4, norm_limit=None,
        held_out_rows=lambda count: (rows, keep),
    )  # fmt: skip
    (found,) = AttentionHeads(**changes).measure(
        Subject([Examined(autoencoders)], cast(Any, SimpleNamespace(text=text)))
    )
    return found


def test_a_planted_latent_belongs_to_its_head():
    found = measured(planted())
    (numbers,) = found.numbers
    assert numbers["dfa_head_share"] == pytest.approx(1)
    assert numbers["decoder_head_share"] == pytest.approx(1)
    assert numbers["dfa_error"] < 1e-5
    # Random directions read all four heads.
    assert 0.25 < numbers["dfa_head_share_random"] < 0.7
    assert numbers.keys() == AttentionHeads.meanings.keys()
    (shares,) = found.files["attention_heads.json"]["members"]
    by_latent = dict(zip(shares["latent"], shares["heads"], strict=True))
    assert by_latent == {latent: [float(head == latent % HEADS) for head in range(HEADS)] for latent in by_latent}
    assert sum(shares["samples"]) == HEADS * (ROWS.numel() - len(ROWS))


@pytest.mark.parametrize("site", [Z, OUT], ids=str)
@pytest.mark.parametrize("arch", ["standard", "topk", "gated", "jumprelu"])
def test_contributions_sum_to_pre_activations(arch: str, site: Site):
    """With grouped queries and, at attn_out, through W_O; an error would be raised."""
    (numbers,) = measured(build(arch, HEADS * D_HEAD, 12).eval(), site=site).numbers
    assert numbers["dfa_error"] < 1e-4
    assert ("decoder_head_share" in numbers) == (site == Z)


def test_the_own_token_has_everything_if_attention_sees_one_token():
    (numbers,) = measured(planted(), rows=ROWS[:, :2], seeds=1).numbers
    # Of two positions the second counts; the two tokens share what it reads.
    assert numbers["dfa_current_token"] + numbers["dfa_first_token"] == pytest.approx(1)
    assert 0 < numbers["dfa_first_token"] < 1


def test_another_site_is_refused_before_any_pass():
    with pytest.raises(ValueError, match=r"eval\.attention is for dictionaries of an attention layer .* resid_mid\.2"):
        measured(planted(), site=Site(name=SiteName.resid_mid, layer=LAYER))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"has 2 rows, and eval\.attention\.seeds is 3"):
        measured(planted(), rows=ROWS[:2])


def test_every_dictionary_has_the_numbers_that_it_has_alone():
    one, other = planted(), build("topk", HEADS * D_HEAD, 12).eval()
    together = measured(one, other).numbers
    assert [measured(each).numbers[0] for each in (one, other)] == [pytest.approx(each) for each in together]
