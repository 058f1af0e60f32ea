"""Parts that count equally, and what a linear path leaves to the codes."""

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends, Layout
from fsae.evaluation.amortisation import Amortisation
from fsae.evaluation.decoder_projection import DecoderProjection
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.mdl import Mdl, RoundedCodes
from fsae.evaluation.parts import equal_parts, left_to_codes
from fsae.evaluation.subject import Examined, Subject
from fsae.sources.in_memory import InMemorySource
from tests.architectures import settings_of

# The first part is one dimension, the second one two.
TWO = Layout((("a", 1), ("b", 2)))
X = torch.tensor([[0.0, 0.0, 0.0], [2.0, 6.0, 8.0]])


def writing(ends: Ends, W_enc: list[list[float]], W_dec: list[list[float]]):
    autoencoder = settings_of("standard", d_sae=len(W_dec)).build(ends, torch.Generator()).eval()
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            weights = {"W_enc": W_enc, "W_dec": W_dec}.get(name)
            parameter.copy_(torch.tensor(weights) if weights else torch.zeros_like(parameter))
    return autoencoder


def test_every_part_has_a_variance_of_1():
    # Deviations are 1 of the mean 1, and 5 of the mean (3, 4).
    assert torch.equal(torch.as_tensor(equal_parts(TWO, X)), torch.tensor([1.0, 0.2, 0.2]))
    assert equal_parts(Layout.of(3), X) == 1.0


def test_the_error_of_several_parts_is_the_mean_of_their_own():
    # A latent copies the first part, and nothing explains the second one: 0 and, without its mean, 1 + 25 / 25.
    copying = writing(Ends(input=TWO, target=TWO), [[1.0], [0.0], [0.0]], [[1.0, 0.0, 0.0]])
    codes = RoundedCodes(copying, [X], [X])
    assert codes.fvu(codes.values) == pytest.approx((0 + 2) / 2)


def test_the_linear_path_costs_no_code():
    ends = Ends(input=Layout.of(1, "read"), target=Layout.of(2, "written"), skip=True)
    autoencoder = writing(ends, [[1.0]], [[0.0, 1.0]])
    x, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 1.0], [6.0, 3.0]])
    with torch.no_grad():
        autoencoder.get_parameter("W_skip").copy_(torch.tensor([[2.0], [0.0]]))
    assert left_to_codes(autoencoder, x, targets).tolist() == [[0.0, 1.0], [0.0, 3.0]]
    codes = RoundedCodes(autoencoder, [x], [targets])
    assert codes.fvu(codes.values) == 0
    assert codes.values.tolist() == [1, 3]


def reading(x: Tensor) -> Subject:
    autoencoder = writing(Ends(input=TWO, target=TWO), [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[3.0, 0, 0], [0, 0, 7.0]])
    return Subject([Examined([autoencoder])], InMemorySource(x, x, 0, x.device))


# The sample is (2, 1.2, 1.6) in units of all batches, 1 and 5, and the rows' directions are (1, 0, 0) and (0, 0, 1). Of
# 2, 1.6, 0 and 0 the second counts, as n = 1 of 2 latents for two samples; of 0 and 0, and of 2 and 1.6, the first.
@pytest.mark.parametrize(("batch_size", "expected"), [(2, 1.6), (1, (0 + 2) / 2)])
def test_projections_are_of_parts_that_count_equally(batch_size: int, expected: float):
    (measured,) = DecoderProjection(samples=2, batch_size=batch_size, share=0.49).measure(reading(X))
    assert measured.numbers == [{"decoder_projection": pytest.approx(expected)}]


@pytest.mark.parametrize(
    "evaluation", [Amortisation(), DecoderProjection(), Mdl()], ids=lambda each: type(each).__name__
)
def test_a_part_without_variance_is_refused_in_a_sentence(evaluation: Evaluation):
    constant = torch.tensor([[0.0, 0.1, 0.2], [2.0, 0.1, 0.2]])
    for x, part in ((constant, "b"), (X[:1], "a")):
        with pytest.raises(ValueError, match=f"targets at {part} have no variance in {len(x)} held-out samples"):
            evaluation.measure(reading(x))
