"""Autoencoders that are fitted: what they make of an input, at weights set by hand."""

import pytest
import torch

from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA, LocalPCASettings
from fsae.autoencoders.pca import PCA, PCASettings
from tests.architectures import samples

CENTRES = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
# Of the first cell the second axis, of the other the third one.
COMPONENTS = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])


def local_pca() -> LocalPCA:
    autoencoder = LocalPCASettings(d_sae=4, rank=1).build(3, torch.Generator()).eval()
    autoencoder.set_weights(CENTRES, COMPONENTS)
    return autoencoder


def test_a_cell_has_its_centre_and_the_coordinates_along_its_components():
    # Nearer to 0, of which the second axis is kept; nearer to 4, of which the third is.
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]])
    record = local_pca()(x)
    assert record.codes.dense().tolist() == [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 5.0]]
    assert record.reconstruction.tolist() == [[0.0, 2.0, 0.0], [4.0, 0.0, 5.0]]
    assert record.codes.firing_counts.tolist() == [1, 1, 1, 1]


def test_the_coordinates_are_of_the_difference_to_the_centre():
    autoencoder = local_pca()
    autoencoder.set_weights(CENTRES + 1.0, COMPONENTS)
    # 3 - 1 along the second axis from the centre (1, 1, 1).
    assert autoencoder(torch.tensor([[0.0, 3.0, 0.0]])).reconstruction.tolist() == [[1.0, 3.0, 1.0]]


def test_the_encoder_has_the_centre_and_the_decoder_the_mean():
    autoencoder = local_pca()
    autoencoder.set_weights(CENTRES, COMPONENTS, CENTRES + 1.0)
    # Nearer to the centre 0 than to 4 (though not than to the other mean, 5); of (1, 1, 1) its second axis is kept.
    record = autoencoder(torch.tensor([[1.9, 3.0, 0.0]]))
    assert record.codes.dense().tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert record.reconstruction.tolist() == [[1.0, 3.0, 1.0]]
    assert autoencoder.centres.tolist() == CENTRES.tolist()
    assert autoencoder.means.tolist() == (CENTRES + 1.0).tolist()


def test_k_means_gives_the_nearest_centre():
    autoencoder = KMeansSettings(d_sae=7).build(5, torch.Generator()).double()
    centres, x = samples(7, seed=2), samples(40)
    autoencoder.set_weights(centres)
    nearest = torch.cdist(x, centres).argmin(1)
    record = autoencoder(x)
    assert torch.equal(record.reconstruction, centres[nearest])
    assert torch.equal(record.codes.dense(), torch.nn.functional.one_hot(nearest, 7).double())


def test_pca_projects_on_the_affine_space_through_the_mean():
    autoencoder = PCASettings(d_sae=2).build(5, torch.Generator()).double()
    assert isinstance(autoencoder, PCA)
    mean, x = samples(1, seed=3), samples(40)
    basis = torch.linalg.qr(samples(5, seed=4)).Q[:2]
    autoencoder.set_weights(mean, basis.unsqueeze(0))
    torch.testing.assert_close(autoencoder(x).reconstruction, mean + (x - mean) @ basis.T @ basis)


def test_dense_and_sparse_codes_are_the_same():
    autoencoder = LocalPCASettings(d_sae=12, rank=3).build(5, torch.Generator()).double()
    components = torch.linalg.qr(samples(15, seed=5).view(3, 5, 5)).Q[:, :3]
    autoencoder.set_weights(samples(3, seed=6), components)
    x = samples(40)
    dense, sparse = autoencoder(x), autoencoder(x, sparse=True)
    assert sparse.codes.pattern is not None
    assert torch.equal(dense.codes.dense(), sparse.codes.dense())
    torch.testing.assert_close(dense.reconstruction, sparse.reconstruction)
    # What decides and what is measured are the pre-activations of the record.
    coordinates = dense.pre_activations.dense().view(40, 3, 4)[:, :, 1:]
    where = dense.codes.dense().view(40, 3, 4)[:, :, 1:] != 0
    torch.testing.assert_close(dense.codes.dense().view(40, 3, 4)[:, :, 1:][where], coordinates[where])


def test_the_width_is_that_of_centres_and_components():
    assert LocalPCASettings(d_sae=12, rank=3).cells(5) == 3
    # 2.5 x 5 = 12.5 latents: four cells of three.
    assert (LocalPCASettings(expansion=2.5, rank=2).cells(5), LocalPCASettings(expansion=2.5, rank=2).width(5)) == (
        4,
        12,
    )
    with pytest.raises(ValueError, match=r"arch.d_sae is 10; .* make it a multiple of 4"):
        LocalPCASettings(d_sae=10, rank=3)
    with pytest.raises(ValueError, match=r"arch.rank is 0; it must be .* \(arch=kmeans has none\), at least 1"):
        LocalPCASettings(rank=0)


def test_more_components_than_dimensions_are_refused_by_the_name_of_their_setting():
    with pytest.raises(ValueError, match=r"arch.d_sae asks for 6 .* vectors of width 5 have 5; set it to 5 or less"):
        PCASettings(d_sae=6).check_width(5)
    with pytest.raises(ValueError, match=r"arch.rank asks for 6 principal components"):
        LocalPCASettings(rank=6).check_width(5)
    PCASettings(d_sae=5).check_width(5)
