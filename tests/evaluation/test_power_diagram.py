"""The power diagram of an autoencoder: its cells are the supports."""

import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.local_pca import LocalPCA
from fsae.autoencoders.topk import TopK
from fsae.evaluation.power_diagram import PowerDiagram, own_supports, power_diagram
from fsae.export.folding import fold
from tests.architectures import build, fitted, samples, with_weights


def diagram_of(autoencoder: Autoencoder) -> PowerDiagram:
    found = power_diagram(autoencoder)
    assert found is not None
    return found


def test_sites_are_the_encoders_columns_and_weights_make_up_for_the_biases():
    autoencoder = with_weights("topk", {"W_enc": [[1.0, -1.0]], "b_enc": [0.0, 1.0]}, k=1)
    diagram = diagram_of(autoencoder)
    assert diagram.sites.tolist() == [[1.0], [-1.0]]
    # 2 b + |w|^2.
    assert diagram.weights.tolist() == [1.0, 3.0]
    # At 0: 1 - 1 and 1 - 3; z = 0 and 1, so the second is nearer and chosen, by a distance of 2 (1 - 0).
    assert diagram.distances(torch.zeros(1, 1)).tolist() == [[0.0, -2.0]]
    latents, gap = diagram.supports(torch.zeros(1, 1))
    assert (latents.tolist(), gap.tolist()) == ([[1]], [2.0])


def test_a_latent_is_on_where_its_site_is_nearer_than_the_origin_too():
    autoencoder = with_weights("topk", {"W_enc": [[1.0, -1.0]], "b_enc": [0.0, 0.5]}, k=2)
    assert isinstance(autoencoder, TopK)
    x = torch.tensor([[2.0], [0.25], [-3.0]])
    # z = (2, -1.5), (0.25, 0.25) and (-3, 3.5): off where it is negative; the gap is 2 |z| of the closest to 0.
    supports, gap = diagram_of(autoencoder).supports(x)
    assert supports.tolist() == [[-1, 0], [0, 1], [-1, 1]]
    assert gap.tolist() == [3.0, 0.5, 6.0]
    assert own_supports(autoencoder, x).tolist() == supports.tolist()


@pytest.mark.parametrize("arch", ["topk", "abs_topk"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_its_supports_are_the_autoencoders(arch: str, apply_b_dec_to_input: bool):
    autoencoder = build(arch, apply_b_dec_to_input=apply_b_dec_to_input).eval()
    assert isinstance(autoencoder, TopK)
    x = 2 * samples(1000)
    assert torch.equal(diagram_of(autoencoder).supports(x)[0], own_supports(autoencoder, x))
    # The same holds in another unit of the inputs.
    folded = fold(autoencoder, 0.37)
    assert isinstance(folded, TopK)
    assert torch.equal(diagram_of(folded).supports(x)[0], own_supports(autoencoder, 0.37 * x))


@pytest.mark.parametrize("arch", ["kmeans", "local_pca"])
def test_of_cells_it_is_the_voronoi_diagram_of_the_centres(arch: str):
    autoencoder = fitted(arch, dtype=torch.float64)
    assert isinstance(autoencoder, LocalPCA)
    x = samples(500)
    nearest = torch.cdist(x, autoencoder.centres).argmin(1, keepdim=True)
    assert torch.equal(diagram_of(autoencoder).supports(x)[0], nearest)
    assert torch.equal(own_supports(autoencoder, x), nearest)


def test_the_signs_of_abs_topk_have_sites_of_their_own():
    autoencoder = with_weights("abs_topk", {"W_enc": [[1.0, 2.0]], "b_enc": [0.5, 0.0]}, k=1)
    diagram = diagram_of(autoencoder)
    assert diagram.sites.squeeze(1).tolist() == [1.0, 2.0, -1.0, -2.0]
    assert diagram.weights.tolist() == [2.0, 4.0, 0.0, 4.0]


def test_another_factor_has_the_same_cells():
    autoencoder = build("topk").eval()
    assert isinstance(autoencoder, TopK)
    diagram, x = diagram_of(autoencoder), samples(500)
    assert torch.equal(diagram.times(3.0).supports(x)[0], diagram.supports(x)[0])


def test_it_is_the_section_of_a_voronoi_diagram_at_height_0():
    diagram, x = diagram_of(fitted("kmeans", dtype=torch.float64)).times(0.6), samples(200)
    flat = torch.cat([x, x.new_zeros(200, 1)], dim=1)
    squared = torch.cdist(flat, diagram.lift(), compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(squared, diagram.distances(x) + diagram.weights.max())


def test_with_the_origin_the_nearest_site_says_it_all_for_one_latent():
    autoencoder = build("topk", k=1).eval()
    assert isinstance(autoencoder, TopK)
    x = samples(500)
    nearest = diagram_of(autoencoder).with_origin().distances(x).argmin(1)
    own = own_supports(autoencoder, x).squeeze(1)
    assert (own == -1).any()
    assert torch.equal(torch.where(nearest == autoencoder.d_sae, -1, nearest), own)


@pytest.mark.parametrize("arch", ["standard", "gated", "jumprelu", "batch_topk"])
def test_other_architectures_have_none(arch: str):
    assert power_diagram(build(arch)) is None
