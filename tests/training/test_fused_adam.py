"""Fused Adam, however weights are held."""

import pytest
import torch

from fsae.training.fused_adam import FusedAdam


def trained(weight: torch.Tensor, gradients: list[torch.Tensor], kind: type[torch.optim.Adam]) -> torch.nn.Parameter:
    parameter, bias = torch.nn.Parameter(weight), torch.nn.Parameter(torch.ones(5))
    optimiser = kind([parameter, bias], lr=0.1, weight_decay=0.01)
    for number, gradient in enumerate(gradients):
        parameter.grad, bias.grad = gradient.clone(), None if number == 1 else torch.ones(5)
        if number == 3:
            optimiser.load_state_dict(optimiser.state_dict())
        optimiser.step()
    assert optimiser.state[parameter]["exp_avg"].shape == parameter.shape
    return parameter


@pytest.mark.parametrize("transposed_gradient", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_its_numbers_are_those_of_adam(transposed: bool, transposed_gradient: bool):
    draw = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(7, 5, generator=draw) for _ in range(6))
    if transposed_gradient:
        gradients = [gradient.T.contiguous().T for gradient in gradients]
    wanted = trained(weight.clone(), gradients, torch.optim.Adam)
    found = trained(weight.T.contiguous().T if transposed else weight.clone(), gradients, FusedAdam)
    assert found.is_contiguous() != transposed
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_transposed_matrix_is_not_copied():
    weight = torch.nn.Parameter(torch.ones(768, 512).T)
    weight.grad = torch.ones(768, 512).T
    optimiser = FusedAdam([weight], lr=0.1)
    optimiser.step()
    with torch.profiler.profile() as profile:
        optimiser.step()
    assert not {"aten::contiguous", "aten::clone"} & {event.name for event in profile.events() or []}
