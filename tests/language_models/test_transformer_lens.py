"""Every site of every packaged model, and of small random models of the hub's families, is read and replaced."""

import math
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fsae.language_models.settings import Device, DType, ModelSettings, Package, Weights
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from tests.language_models.conftest import opened

LAYER = 2
EVERY_SITE = [Site(name=name, layer=LAYER) for name in SiteName]
STREAM = [site for site in EVERY_SITE if site.name.value.startswith("resid")]
TEXT = "def mean(values):\n    # Add them up and divide by how many.\n    return sum(values) / len(values)\n" * 2


def families() -> dict:
    """The architectures of the hub models in conf/model, small and random: name to a function that makes the model."""
    import transformers as t

    size: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 257}
    gemma: dict[str, Any] = {
        **size,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    return {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=257, n_positions=256)
        ),
        "gpt_neo": lambda: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                num_layers=4,
                attention_types=[[["global", "local"], 2]],
                hidden_size=32,
                num_heads=4,
                vocab_size=257,
                max_position_embeddings=256,
            )
        ),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**size, num_hidden_layers=4, intermediate_size=64)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**gemma)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**gemma)),
    }


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder with a random model of a family and the tiny model's tokenizer."""
    from transformers import AutoTokenizer

    from fsae.language_models.packaged import packaged_folder

    def write(family: str):
        folder = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = families()[family]()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.mul_(8)
        model.config.bos_token_id = model.config.eos_token_id = 0
        model.generation_config.bos_token_id = model.generation_config.eos_token_id = 0
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(packaged_folder(Package.tiny)).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        pytest.param("smollm2_135m_instruct_q4_1", marks=pytest.mark.packaged),
        pytest.param("gemma3_270m_q4_k_m", marks=pytest.mark.packaged),
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gemma",
        "gemma2",
    ],
)
def model(request, folder_of) -> TransformerLensModel:
    if request.param in Package.__members__:
        return opened(Package[request.param])
    return open_language_model(ModelSettings(path=str(folder_of(request.param)), dtype=DType.float32))


@pytest.fixture(scope="module")
def tokens(model):
    """Two rows that differ."""
    ids = model.tokenise([TEXT])[0][:12]
    start = [] if model.bos_id is None else [model.bos_id]
    return torch.tensor([[*start, *ids], [*start, *reversed(ids)]])


def sites_of(model) -> list[Site]:
    return [site for site in EVERY_SITE if not (model.shape.parallel and site.name is SiteName.resid_mid)]


def replaceable(model) -> list[Site]:
    return [site for site in sites_of(model) if site.weighted is None]


def hooks_left(model) -> int:
    return sum(len(hook.fwd_hooks) for hook in model._bridge.hook_dict.values())


def cross_entropy(logits, tokens) -> float:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def test_activations_equal_those_of_a_full_forward_pass(model, tokens):
    _, cache = model._bridge.run_with_cache(tokens, names_filter=[site.hook_name for site in sites_of(model)])
    for site in sites_of(model):
        read = model.activations(tokens, [site])[site]
        assert read.shape == (*tokens.shape, model.width(site))
        assert torch.equal(read, cache[site.hook_name].flatten(2))
        # A norm's weight may be zero in a few dimensions of what the MLP reads.
        assert (read.std(dim=(0, 1)) > 0).float().mean() > 0.99
    assert hooks_left(model) == 0


def test_one_pass_reads_several_sites(model, tokens):
    sites = [*sites_of(model), Site(name=SiteName.resid_post, layer=0)]
    together = model.activations(tokens, sites)
    for site in sites:
        assert torch.equal(together[site], model.activations(tokens, [site])[site])


@pytest.mark.parametrize(("name", "norm"), [(SiteName.mlp_normalized, "ln2"), (SiteName.attn_normalized, "ln1")])
def test_weight_of_a_norm_makes_what_a_sublayer_reads(model, tokens, name, norm):
    site = Site(name=name, layer=LAYER)
    assert site.weighted is not None
    read = model.activations(tokens, [site, site.weighted])
    normalised, whole = (read[each].flatten(0, 1) for each in (site, site.weighted))
    weight, _ = model._observed_norm(getattr(model._bridge.blocks[LAYER], norm).original_component)
    # Differences leave out a bias.
    torch.testing.assert_close((normalised[1:] - normalised[0]) * weight, whole[1:] - whole[0], rtol=1e-2, atol=1e-3)


def test_the_parts_of_the_stream_add_up(model, tokens):
    read = {site.name: x for site, x in model.activations(tokens, sites_of(model)).items()}
    end = read[SiteName.resid_pre] + read[SiteName.attn_out] + read[SiteName.mlp_out]
    torch.testing.assert_close(read[SiteName.resid_post], end, atol=1e-3, rtol=1e-4)
    if not model.shape.parallel:
        middle = read[SiteName.resid_pre] + read[SiteName.attn_out]
        torch.testing.assert_close(read[SiteName.resid_mid], middle, atol=1e-3, rtol=1e-4)


def test_a_concurrent_splice_does_not_change_harvested_activations(tiny):
    """Shards are fetched by a thread of their own, while an evaluation may be running."""
    tokens = torch.arange(256).view(8, 32)
    site = Site(name=SiteName.resid_mid, layer=1)
    alone = tiny.activations(tokens, [site])[site], tiny.logits(tokens), tiny.logits(tokens, (site, torch.zeros_like))
    with ThreadPoolExecutor(1) as background:
        harvest = background.submit(lambda: [tiny.activations(tokens, [site])[site] for _ in range(30)])
        while not harvest.done():
            assert torch.equal(tiny.logits(tokens), alone[1])
            assert torch.equal(tiny.logits(tokens, (site, torch.zeros_like)), alone[2])
        assert all(torch.equal(read, alone[0]) for read in harvest.result())


def test_rows_beyond_one_forward_pass_are_read(tiny):
    tokens = torch.arange(40).view(5, 8)
    site = Site(name=SiteName.attn_z, layer=1)
    one_by_one = torch.cat([tiny.activations(row[None], [site])[site] for row in tokens])
    torch.testing.assert_close(tiny.activations(tokens, [site])[site], one_by_one)


def test_the_pass_stops_at_the_site(model, tokens):
    ran = []
    later = [f"blocks.{LAYER}.hook_mlp_out", f"blocks.{LAYER + 1}.hook_resid_pre"]
    if model.shape.parallel:
        pytest.skip("nothing between attention and MLP")
    for name in later:
        model._bridge.hook_dict[name].add_hook(lambda activations, hook, name=name: ran.append(name))
    try:
        model.activations(tokens, [Site(name=SiteName.resid_mid, layer=LAYER)])
        assert ran == []
        model.logits(tokens)
        assert ran == later
    finally:
        model._bridge.reset_hooks()


def test_replacing_activations_by_themselves_changes_nothing(model, tokens):
    whole = model.logits(tokens)
    assert whole.shape == (*tokens.shape, model.d_vocab)
    for site in replaceable(model):
        assert (model.logits(tokens, (site, lambda x: x.clone())) - whole).abs().max() <= 1e-4
    assert hooks_left(model) == 0


def test_the_replacement_receives_the_activations_that_are_read(model, tokens):
    for site in replaceable(model):
        got = []
        model.logits(tokens, (site, lambda x, got=got: got.append(x) or x))
        torch.testing.assert_close(got[0], model.activations(tokens, [site])[site], atol=2e-4, rtol=1e-4)


def test_zeroing_the_stream_leaves_only_later_layers(model, tokens):
    """Zeroing the stream at a block's end equals zeroing it before the next block; nothing of the text is left."""
    after = model.logits(tokens, (Site(name=SiteName.resid_post, layer=LAYER), torch.zeros_like))
    before = model.logits(tokens, (Site(name=SiteName.resid_pre, layer=LAYER + 1), torch.zeros_like))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    # Rows 0 and 1 hold different tokens, so any difference came through the stream.
    torch.testing.assert_close(after[0], after[1], atol=1e-4, rtol=1e-4)
    assert torch.diff(model.logits(tokens), dim=0).abs().max() > 0.1


def test_replacing_resid_mid_also_edits_the_skip_connection(model, tokens):
    if model.shape.parallel:
        pytest.skip("no resid_mid")
    middle = Site(name=SiteName.resid_mid, layer=LAYER)
    without = model.logits(tokens, (middle, torch.zeros_like))
    # As at the stream's other sites nothing of the text is left. (Zeroing only the MLP's input would leave all of it.)
    torch.testing.assert_close(without[0], without[1], atol=1e-4, rtol=1e-4)
    only_mlp = model.logits(tokens, (Site(name=SiteName.mlp_out, layer=LAYER), torch.zeros_like))
    assert (without - only_mlp).abs().max() > 0.1
    # Adding a vector at resid_mid equals adding it at resid_post, apart from its effect on the MLP's output:
    change = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(0))
    mlp_out = Site(name=SiteName.mlp_out, layer=LAYER)
    read, mlp = model.activations(tokens, [middle, mlp_out]).values()
    changed = {}

    def keep_mlp(x, hook):
        changed["mlp"] = x

    model._bridge.hook_dict[mlp_out.hook_name].add_hook(keep_mlp)
    try:
        added = model.logits(tokens, (middle, lambda x: x + change))
    finally:
        model._bridge.reset_hooks()
    end = read + change + changed["mlp"]
    assert (changed["mlp"] - mlp).abs().max() > 0
    expected = model.logits(tokens, (Site(name=SiteName.resid_post, layer=LAYER), lambda x: end))
    torch.testing.assert_close(added, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.packaged
@pytest.mark.parametrize("package", [Package.smollm2_135m_instruct_q4_1, Package.gemma3_270m_q4_k_m])
def test_packaged_models_predict_text_unless_the_stream_is_zeroed(package):
    model = opened(package)
    ids = model.tokenise([TEXT])[0][:47]
    tokens = torch.tensor([[model.separator_id if model.bos_id is None else model.bos_id, *ids]])
    uniform = math.log(model.d_vocab)
    assert cross_entropy(model.logits(tokens), tokens) < 0.4 * uniform
    for site in STREAM:
        assert cross_entropy(model.logits(tokens, (site, torch.zeros_like)), tokens) == pytest.approx(uniform, abs=0.01)


@pytest.mark.packaged
def test_special_tokens_of_packaged_models():
    smollm2, gemma = opened(Package.smollm2_135m_instruct_q4_1), opened(Package.gemma3_270m_q4_k_m)
    # 1 is <|im_start|>, which the tokenizer calls its BOS and never puts before a text.
    assert (smollm2.bos_id, smollm2.separator_id) == (None, 0)
    # The tokenizer has a BOS and does not put it before a text.
    assert smollm2.bos_token_id == smollm2._tokenizer.convert_tokens_to_ids("<|im_start|>") == 1
    assert {0, 1, 2} <= smollm2.special_ids
    assert (gemma.bos_id, gemma.separator_id) == (2, 1)
    assert {0, 1, 2} <= gemma.special_ids
    assert not set(gemma.tokenise(["def f():\n\n\treturn 1\n"])[0]) & gemma.special_ids


def test_opening_a_folder_makes_no_request(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    open_language_model(ModelSettings(package=Package.tiny))
    assert asked == []


def test_tokenise(tiny):
    # Bytes sorted by the printable letter that stands for them: '!' is the first, after the separator.
    assert tiny.tokenise(['!"', "", "b"]) == [[1, 2], [], [66]]
    assert (tiny.bos_id, tiny.separator_id, tiny.special_ids) == (None, 0, {0})
    assert tiny.tokenise([]) == []


def test_a_long_text_is_tokenised_completely_and_without_a_warning(tiny, capfd):
    assert len(tiny.tokenise(["a" * 5 * tiny.context_limit])[0]) == 5 * tiny.context_limit
    assert capfd.readouterr().err == ""


def test_activations_can_be_trained_on(tiny):
    site = Site(name=SiteName.resid_mid, layer=1)
    vectors = tiny.activations(torch.arange(8).view(2, 4), [site])[site]
    weight = torch.ones(32, requires_grad=True)
    (vectors @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, vectors.sum(dim=(0, 1)))


def test_dtype(tiny):
    model = open_language_model(ModelSettings(package=Package.tiny, dtype=DType.bfloat16))
    site = Site(name=SiteName.resid_mid, layer=1)
    tokens = torch.arange(8).view(2, 4)
    half, full = model.activations(tokens, [site])[site], tiny.activations(tokens, [site])[site]
    assert half.dtype is model.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
    whole = model.logits(tokens)
    assert torch.equal(model.logits(tokens, (site, lambda x: x.float())), whole)


def test_random_weights_are_always_the_same(tiny):
    drawn = [
        open_language_model(ModelSettings(package=Package.tiny, weights=Weights.random, dtype=dtype))
        for dtype in (DType.float32, DType.float32, DType.bfloat16)
    ]
    tokens = torch.arange(8).view(2, 4)
    first, again, half = (model.logits(tokens) for model in drawn)
    assert torch.equal(first, again)
    assert (first - tiny.logits(tokens)).abs().max() > 0.01
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), first, atol=0.05, rtol=0.05)
    # Frequencies of positional embeddings are not weights, and must not be rounded.
    frequencies = [buffer for name, buffer in drawn[2]._bridge.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert all(buffer.dtype is torch.float32 for buffer in frequencies)


def test_permuted_weights_have_the_rows_of_the_published_ones_in_another_order(tiny):
    def opened(seed: int):
        return open_language_model(
            ModelSettings(package=Package.tiny, weights=Weights.permuted, weights_seed=seed, dtype=DType.float32)
        )

    tokens = torch.arange(8).view(2, 4)
    permuted = opened(0)
    logits = permuted.logits(tokens)
    assert torch.equal(opened(0).logits(tokens), logits)
    assert (opened(1).logits(tokens) - logits).abs().max() > 0.01
    assert (logits - tiny.logits(tokens)).abs().max() > 0.01
    published = dict(tiny._bridge.named_parameters())
    moved = 0
    for name, weight in permuted._bridge.named_parameters():
        rows, known = (sorted(map(tuple, each.view(len(each), -1).tolist())) for each in (weight, published[name]))
        assert rows == known, name
        moved += not torch.equal(weight, published[name])
    assert moved >= 4 * 7


@pytest.mark.parametrize("name", SiteName)
def test_check_site_refuses_a_layer_beyond_the_model(tiny, name):
    with pytest.raises(ValueError, match=r"layer 4 is named, but model tiny has 4 layers, 0 to 3"):
        tiny.check_site(Site(name=name, layer=4))
    with pytest.raises(ValueError, match="has 4 layers"):
        tiny.activations(torch.zeros(1, 2, dtype=torch.long), [Site(name=name, layer=4)])


def test_check_site_refuses_a_site_without_a_hook(folder_of):
    model = open_language_model(ModelSettings(path=str(folder_of("gpt_neox"))))
    sites = "resid_pre, resid_post, mlp_out, attn_out, attn_z"
    with pytest.raises(ValueError, match=f"resid_mid, but in model .* sites {sites}"):
        model.check_site(Site(name=SiteName.resid_mid, layer=0))


def test_opening_refuses_a_missing_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="PyTorch sees no GPU"):
        open_language_model(ModelSettings(package=Package.tiny, device=Device.cuda))


def test_opening_refuses_a_folder_without_weights(folder_of):
    folder = folder_of("gpt2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"model.path: {folder} could not be opened"):
        open_language_model(ModelSettings(path=str(folder)))
