import shutil

import pytest

from fsae.configuration.checks import check
from fsae.configuration.schema import settings_of
from tests.composition import composed

CROSSCODER = ("layout=crosscoder", "layout.layers=[]")
BLOCKS = ("model=tiny", "layout=per_layer_transcoder", "layout.layers=[1,2]", "arch=batch_topk")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dataset.context=64", "dataset.skip_positions=63"],
            r"eval\.splice needs next tokens, but .* keeps only the last of 64 positions .*leave splice out of eval",
        ),
        (["~loss.reconstruction"], r"loss\.reconstruction is missing, and without it nothing ties codes"),
        (["loss.reconstruction.weight=0"], r"loss\.reconstruction has the weight 0"),
        (["loss.reconstruction.warm_up=0.1"], r"loss\.reconstruction\.warm_up is 0\.1, .* at first; leave it at 0"),
        (
            ["arch=omp", "penalty=fisher"],
            r"loss\.penalty \(Fisher\) trains .* of arch OMP have no gradient; set penalty=none",
        ),
        (["arch=omp", "penalty=decorrelation"], r"loss\.penalty \(Decorrelation\) .* set penalty=none"),
        (
            ["arch=omp", "+schema/loss@loss.sparsity=l1"],
            r"loss\.sparsity \(L1\) .* set loss\.sparsity\.weight=0, which measures it",
        ),
        (
            ["trainer=pam", "arch.decoder_norm=free", "arch=topk", "penalty=orthogonal"],
            r"loss\.penalty \(Orthogonality\) pulls on the decoder, .* set penalty=none",
        ),
        (
            ["debug=tiny", "arch.expansion=1e-9"],
            r"arch\.expansion is 1e-09, which gives no latent for vectors",
        ),
        (["task=eval"], r"name its folder with sae\.path=FOLDER"),
        (["sae.path=/some/where"], r"sae\.path is only read by task=eval"),
        (["site.layer=30"], r"layer 30 is named, but model smollm2_135m_instruct_q4_1 has 30 layers, 0 to 29"),
        (["model=tiny", "site.layer=4"], r"layer 4 is named, but model tiny has 4 layers"),
        # 32 wide: 8 times as many latents are 256.
        (["model=tiny", "arch=topk", "arch.k=257"], r"arch\.k is 257, more than the 256 latents"),
        (["arch=batch_topk", "arch.d_sae=63"], r"arch\.k is 64, more than the 63 latents"),
        (["model=gemma3_270m_q4_k_m", "site=attn_z", "arch=topk", "arch.expansion=0.05"], r"more than the 51 latents"),
        (
            ["arch=standard", "loss=jumprelu"],
            r"loss\.sparsity \(StepL0\) needs .* active, which arch Standard does not",
        ),
        (["arch=standard", "loss=gated"], r"loss\.auxiliary \(GateReconstruction\) needs .* gate, which arch Standard"),
        (
            [*BLOCKS, "loss=matryoshka"],
            r"loss\.reconstruction reads the first latents alone, and these are latents of the first part",
        ),
        ([*BLOCKS, "loss=matryoshka_sampled"], r"loss\.reconstruction reads the first latents alone"),
        (
            [
                "model=tiny",
                "layout=crosscoder",
                "layout.layers=[1,2]",
                "layout.exclusive=0.05",
                "arch=batch_topk",
                "loss=matryoshka_sampled",
            ],
            r"loss\.reconstruction reads the first latents alone",
        ),
        ([*BLOCKS, "+schema/loss@loss.contrast=temporal_contrast"], r"loss\.contrast reads the first latents alone"),
        ([*BLOCKS, "+schema/loss@loss.levels=level_aux_k"], r"loss\.levels reads the first latents alone"),
        (
            [
                "model=tiny",
                "layout=cross_layer_transcoder",
                "layout.layers=[1,2]",
                "arch=topk",
                "arch.decoder_norm=free",
                "trainer=pam",
            ],
            r"trainer=pam solves for a decoder whose latents write all parts",
        ),
        (
            ["model=tiny", "layout=per_layer_transcoder", "layout.layers=[1,2,3]", "arch=topk", "arch.d_sae=100"],
            r"100 latents, which cannot be divided into blocks .* arch\.d_sae to a multiple of 3",
        ),
        (
            ["model=tiny", "layout=crosscoder", "layout.layers=[1,2]", "layout.exclusive=0.5"],
            r"layout\.exclusive is 0\.5, and the dictionary has 2 parts; .* leaves latents for all",
        ),
        (["source.tokens=100"], r"trainer\.batch_size is \d+, more than source\.tokens \(100\)"),
        (
            ["model=custom", "model.path=/no/such/folder"],
            r"model\.path: '/no/such/folder' is no folder on this machine",
        ),
        (
            ["model=tiny", "+model@layout.model=custom", "layout.model.path=/no/such/folder", *CROSSCODER],
            r"^layout\.model\.path: '/no/such/folder' is no folder on this machine",
        ),
        (
            ["model=tiny", "+model@layout.model=tiny", "layout.model.path=gpt2", *CROSSCODER],
            r"^layout\.model\.path and layout\.model\.package: set exactly one \(found 'gpt2'",
        ),
        (
            ["model=tiny", "+model@layout.model=custom", "layout.model.path=null", *CROSSCODER],
            r"^layout\.model\.path is not set; add layout\.model\.path=FOLDER_OR_HUB_NAME",
        ),
        (
            ["model=tiny", "+model@layout.model=tiny", "layout.model.revision=main", *CROSSCODER],
            r"^layout\.model\.revision is 'main', but a packaged model has none",
        ),
        (
            ["model=tiny", "+model@layout.model=tiny", "layout.model.weights_seed=1", *CROSSCODER],
            r"^layout\.model\.weights_seed is 1, .* set layout\.model\.weights=random or layout\.model\.weights=",
        ),
        (
            ["model=gpt2", "model.dtype=float32", "+model@layout.model=tiny", "site.layer=9", *CROSSCODER],
            r"^layer 9 is named, but model tiny \(layout\.model\) has 4 layers",
        ),
        (["arch=topk", "trainer=fit"], r"arch TopK is trained by gradients: choose trainer=adam"),
        (["arch=kmeans", "trainer=adam"], r"arch KMeans has no gradients: choose trainer=fit"),
        (
            ["penalty=none", "trainer.batch_size=1"],
            r"trainer\.batch_size is 1, .* set loss\.penalty\.estimator=batch",
        ),
        (["~loss.penalty", "trainer.batch_size=1"], r"trainer\.batch_size is 1, .* two samples per batch; raise it$"),
        (
            ["arch=pca", "penalty=fisher"],
            r"loss\.penalty\.weight is 1000\.0, but arch PCA is fitted to the squared error alone",
        ),
        (["arch=kmeans", "population=mfr/base"], r"arch KMeans is fitted without gradients: a mutual term"),
        (
            ["arch=kmeans", "arch.d_sae=5000"],
            r"trainer\.batch_size is 4096, but the first batch must supply 5000 centres",
        ),
        (["arch=pca", "arch.d_sae=577"], r"arch\.d_sae asks for 577 principal components, .* set it to 576 or less"),
        (["source=toy_clusters", "arch=local_pca"], r"arch\.rank asks for 15 .* vectors of width 2 have 2"),
        (["source=toy_clusters", "arch=topk"], r"arch\.k is 64, more than the 16 latents"),
        (["source=mnist", "arch=pca", "arch.d_sae=65"], r"arch\.d_sae asks for 65 .* vectors of width 64 have 64"),
        (["tracking.uri=/some/folder"], r"tracking\.uri=/some/folder"),
        (["arch=gated", "arch.decoder_norm=free"], r"shrinks decoder rows.*loss\.auxiliary\.detach_decoder=false"),
        (["trainer=pam"], r"arch\.decoder_norm is unit, .*set arch\.decoder_norm=free"),
        (
            ["trainer=pam", "arch.decoder_norm=free", "arch.encoder_init=tied"],
            r"trainer=pam solves .* arch\.encoder_init=tied",
        ),
        (
            ["trainer=pam", "arch.decoder_norm=free", "loss.reconstruction.weight=0.5"],
            r"trainer=pam solves .* loss\.reconstruction\.weight is 0\.5; set it to 1",
        ),
        (
            ["trainer=pam", "arch.decoder_norm=free", "population.size=2", "population.mutual.weight=0.1"],
            r"set population\.mutual\.directions=encoder",
        ),
        (["model=tiny", "arch=topk", "arch.decoder_init=mlp"], r"decoder_init=mlp starts .* choose layout=transcoder"),
        (["model=tiny", "layout=jacobian_pair", "arch=topk", "loss=tsae"], r"loss\.contrast .* member of the pair"),
    ],
)
def test_what_cannot_be_run_together_is_refused_by_name(overrides: list[str], message: str):
    if "model=tiny" in overrides and not any("site.layer" in override for override in overrides):
        overrides = [*overrides, "site.layer=1"]
    with pytest.raises(ValueError, match=message):
        check(settings_of(composed(*overrides)))


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"trainer\.compile .* there is no g\+\+"):
        check(settings_of(composed("model=tiny", "trainer.compile=true")))


def test_what_can_is_not():
    check(settings_of(composed("model=tiny", "site.layer=3", "arch=topk", "arch.k=256")))
    check(settings_of(composed("task=eval", "sae.path=/some/where")))
    for penalty in (["penalty=none"], ["penalty=orthogonal"], ["penalty=fisher", "loss.penalty.form=reconstruction"]):
        check(settings_of(composed("arch=omp", *penalty)))


def test_a_model_that_was_never_downloaded_is_checked_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fsae.configuration.checks.shape_of", lambda settings: None)
    check(settings_of(composed("model=gemma2b", "site.layer=99")))
