"""One head of attn_z as a site of its own."""

import pytest
import torch

from fsae.language_models.sites import Site, SiteName

HEADS = 4
WHOLE = Site(name=SiteName.attn_z, layer=2)
EACH = [Site(name=SiteName.attn_z, layer=2, head=head) for head in range(HEADS)]


@pytest.fixture(scope="module")
def tokens(tiny) -> torch.Tensor:
    return torch.tensor([tiny.tokenise(["def mean(values): return sum(values) / len(values)"])[0][:12]])


def test_the_heads_side_by_side_are_all_of_attn_z(tiny, tokens):
    read = tiny.activations(tokens, [WHOLE, *EACH])
    assert [tiny.width(site) for site in EACH] == [8] * HEADS
    assert torch.equal(torch.cat([read[site] for site in EACH], dim=-1), read[WHOLE])


def test_a_replacement_of_one_head_leaves_the_others(tiny, tokens):
    def without_the_third(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[..., 16:24] = 0
        return z

    expected = tiny.logits(tokens, (WHOLE, without_the_third))
    assert torch.equal(tiny.logits(tokens, (EACH[2], torch.zeros_like)), expected)
    assert not torch.equal(expected, tiny.logits(tokens))
    assert torch.equal(tiny.logits(tokens, (EACH[2], lambda z: z)), tiny.logits(tokens))
    tiny.check_splice(EACH[2])


def test_a_head_is_added_to_the_stream_by_its_rows_of_w_o(tiny):
    matrix, rows = tiny.into_stream(WHOLE), tiny.into_stream(EACH[3])
    assert torch.equal(rows, matrix[24:])


def test_a_head_beyond_the_last_is_refused(tiny):
    with pytest.raises(ValueError, match=r"site.head is 4, but the blocks of model tiny have 4 attention heads"):
        tiny.check_site(Site(name=SiteName.attn_z, layer=2, head=4))


def test_a_head_at_another_site_is_refused():
    with pytest.raises(ValueError, match=r"site.head is 1, but only attn_z has heads, and site.name is mlp_out"):
        Site(name=SiteName.mlp_out, layer=2, head=1)


def test_the_name_of_a_head_is_read_back():
    assert str(EACH[1]) == "attn_z.2.1"
    assert Site.parse("attn_z.2.1") == EACH[1]
    assert Site.parse("attn_z.2") == WHOLE
    assert Site.of_hook("blocks.2.attn.hook_z", 1) == EACH[1]
    with pytest.raises(ValueError, match=r"'attn_z.2.x' is no site"):
        Site.parse("attn_z.2.x")


def test_attention_s_evaluations_are_for_all_heads():
    assert WHOLE.of_attention
    assert not EACH[0].of_attention
