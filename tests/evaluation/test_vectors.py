import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.vectors import VectorEvaluation, Vectors, evaluate_vectors
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm
from fsae.sources.source import Batch
from tests.architectures import ARCHITECTURES, build, each_architecture, samples


def forms_of(arch: str) -> list[FisherForm]:
    """Return the forms of the Fisher penalty that an architecture's record has the fields for."""
    provided = ARCHITECTURES[arch].settings.provides
    return [form for form in FisherForm if form is not FisherForm.pre or "pre_activations" in provided]


def evaluated(
    autoencoder: Autoencoder, batches: Iterable[Tensor], fisher: Fisher | None = None, sparse: bool = True
) -> VectorEvaluation:
    (evaluation,) = evaluate_vectors([autoencoder], reproduced(batches), [fisher or Fisher()], sparse)
    return evaluation


def reproduced(batches: Iterable[Tensor]) -> Iterator[Batch]:
    """Vectors that are their own targets; they can be read once."""
    return (Batch(x, x) for x in batches)


# Metrics that need noisy inputs, a source with a norm limit, or a population.
MORE = {"fvu_of_inputs", "massive_share", "best_fvu", "best_member"}


@each_architecture
def test_gives_every_metric_and_each_has_a_meaning(arch):
    autoencoder = build(arch, dtype=torch.float32).eval()
    evaluation = evaluated(autoencoder, samples(70, dtype=torch.float32).split(20))
    assert evaluation.scalars.keys() == Vectors.meanings.keys() - MORE
    assert all(map(math.isfinite, evaluation.scalars.values()))
    assert evaluation.samples == 70
    assert evaluation.scalars["l0"] == pytest.approx(evaluation.density.sum().item())


@each_architecture
def test_against_the_whole_set_at_once(arch):
    autoencoder, x = build(arch).eval(), samples(64)
    numbers = evaluated(autoencoder, x.split(16)).scalars
    with torch.no_grad():
        record = autoencoder(x)
    x_hat, f = record.reconstruction, record.codes.dense()
    error = (x - x_hat).square().sum()
    wanted = {
        "mse": error / 64,
        "fvu": error / (x - x.mean(0)).square().sum(),
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean(),
        "cosine": torch.cosine_similarity(x, x_hat).mean(),
        "l0": (f != 0).double().sum(1).mean(),
        "l1": (f.abs() @ autoencoder.W_dec.detach().norm(dim=1)).mean(),
        "dead_share": (f == 0).all(0).double().mean(),
        "dense_share": ((f != 0).double().mean(0) > 0.1).double().mean(),
    }
    for name, value in wanted.items():
        assert numbers[name] == pytest.approx(value.item(), rel=1e-9), name


@pytest.mark.parametrize(
    ("arch", "form"),
    [pytest.param(arch, form, id=f"{form.name}-{arch}") for arch in ARCHITECTURES for form in forms_of(arch)],
)
def test_sparse_and_dense_agree(arch, form):
    # At most 3 of 100 latents are on if the architecture limits them; the others fall back to dense codes.
    autoencoder = build(arch, d_sae=100).eval()
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(6.0)
    batches = samples(60).split(20)
    dense = evaluated(autoencoder, batches, Fisher(form=form), sparse=False).scalars
    sparse = evaluated(autoencoder, batches, Fisher(form=form)).scalars
    if (arch, form) == ("omp", FisherForm.reconstruction):
        # The error is orthogonal to the latents that are on, so the penalty is rounding alone, and so is its ratio.
        del dense["fisher_ratio"], sparse["fisher_ratio"]
    assert sparse == pytest.approx(dense, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("k", "asked"), [(3, [True, True, True]), (10, [True, False, False, False])])
def test_codes_with_many_entries_are_made_dense(k, asked):
    autoencoder = build("topk", d_sae=100, k=k).eval()
    paths = []
    autoencoder.register_forward_pre_hook(lambda _, arguments: paths.append(arguments[1]))
    evaluated(autoencoder, samples(60).split(20))
    assert paths == asked


def test_several_get_what_each_gets_alone():
    autoencoders = [build(arch).eval() for arch in ARCHITECTURES]
    # Every form in turn, of those that the architecture has.
    forms = [forms_of(arch) for arch in ARCHITECTURES]
    fishers = [Fisher(form=each[number % len(each)]) for number, each in enumerate(forms)]
    together = evaluate_vectors(autoencoders, reproduced(samples(60).split(20)), fishers)
    for each, autoencoder, fisher in zip(together, autoencoders, fishers, strict=True):
        alone = evaluated(autoencoder, samples(60).split(20), fisher)
        assert each.scalars == alone.scalars
        assert torch.equal(each.density, alone.density)
        assert torch.equal(each.mean_activation, together[0].mean_activation)


def test_mean_activation_is_of_the_whole_set():
    x = samples(50) + 3
    evaluation = evaluated(build("standard").eval(), x.split(16))
    assert evaluation.mean_activation.tolist() == pytest.approx(x.mean(0).tolist())


def test_a_perfect_dictionary_of_opposite_pairs():
    # x = relu(x) - relu(-x): rows +e_i and -e_i reconstruct everything, with one of each pair on.
    autoencoder = StandardSettings(d_sae=8).build(4, torch.Generator()).eval()
    rows = torch.cat([torch.eye(4), -torch.eye(4)])
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
    fisher = Fisher(form=FisherForm.reconstruction, estimator=FisherEstimator.batch)
    numbers = evaluated(autoencoder, samples(40, 4, dtype=torch.float32).split(20), fisher).scalars
    assert numbers["fvu"] == pytest.approx(0, abs=1e-12)
    assert numbers["l0"] == 4
    assert numbers["cosine"] == pytest.approx(1)
    # The Fisher matrix is made of residuals, and all of them are 0.
    assert numbers["fisher"] == pytest.approx(0, abs=1e-20)
    assert numbers["decoder_max_cosine"] == 0


def test_no_gradient_is_kept():
    evaluation = evaluated(build("gated").eval(), samples(20).split(10))
    assert not evaluation.density.requires_grad
    assert not evaluation.mean_activation.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_no_numbers_are_refused(bad):
    x = samples(40)
    x[25, 3] = bad
    with pytest.raises(ValueError, match=r"batch 1 of the held-out vectors: 1 of 100 .* vector 5, dimension 3"):
        evaluated(build("standard").eval(), x.split(20))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no vectors"):
        evaluated(build("standard").eval(), [])


@each_architecture
def test_reconstructions_are_compared_with_the_targets(arch: str):
    autoencoder, clean = build(arch).eval(), samples(40)
    noisy = clean + 0.5 * samples(40, seed=5)
    batches = [Batch(*parts) for parts in zip(noisy.split(16), clean.split(16), strict=True)]
    (evaluation,) = evaluate_vectors([autoencoder], batches, [Fisher()])
    with torch.no_grad():
        x_hat = autoencoder(noisy).reconstruction
    variance = (clean - clean.mean(0)).square().sum()
    assert evaluation.scalars["fvu"] == pytest.approx(((clean - x_hat).square().sum() / variance).item())
    assert evaluation.scalars["fvu_of_inputs"] == pytest.approx(((clean - noisy).square().sum() / variance).item())
