"""A dictionary at its site in a language model, and the parts into which it divides the activations there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.language_models.sites import Site


@dataclass(frozen=True, eq=False)
class State:
    """The parts of activations x = codes @ W_dec + b_dec + error.

    Attributes:
        codes: dense, because rows are short prompts.
        error: of the reconstruction.
    """

    codes: Float[Tensor, "row position d_sae"]
    error: Float[Tensor, "row position d_in"]

    def mean(self) -> "State":
        """Return the mean over rows, position by position, as a state of one row."""
        return State(self.codes.mean(0, keepdim=True), self.error.mean(0, keepdim=True))

    def minus(self, other: "State") -> "State":
        """Return the difference of two states."""
        return State(self.codes - other.codes, self.error - other.error)


@dataclass(frozen=True, eq=False)
class Placed:
    """A dictionary at a site.

    The nodes at a position are the dictionary's latents and, after them, one for the error of the reconstruction. In
    tensors of nodes the last dimension has d_sae + 1 entries.
    """

    site: Site
    autoencoder: Autoencoder

    def state(self, x: Float[Tensor, "row position d_in"]) -> State:
        """Return the parts of activations; differentiable."""
        vectors = x.to(self.autoencoder.W_dec)
        codes = self.autoencoder.encode(vectors.flatten(0, -2)).codes
        error = vectors - self.autoencoder.decode(codes).view_as(vectors)
        return State(codes.dense().unflatten(0, vectors.shape[:-1]), error)

    def vectors(self, change: State) -> Float[Tensor, "row position d_in"]:
        """Return the change of the activations that a change of their parts makes."""
        return change.codes @ self.autoencoder.W_dec + change.error

    def effects(
        self, gradient: Float[Tensor, "row position d_in"], change: State
    ) -> Float[Tensor, "row position nodes"]:
        """Return the first-order effect of each node's change, for a gradient with respect to the activations.

        The activations are a sum over nodes, so the gradient with respect to code i is gradient . W_dec_i, and the sum
        over all nodes is gradient . (change of the activations).
        """
        gradient = gradient.to(change.codes)
        latents = change.codes * (gradient @ self.autoencoder.W_dec.T)
        errors = (change.error * gradient).sum(-1, keepdim=True)
        return torch.cat([latents, errors], dim=-1)
