"""Forward and backward passes over prompts: outcomes with replaced activations, and gradients at sites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.evaluation.causal.prompts import Prompts
from fsae.language_models.sites import Site

Function = Callable[[Float[Tensor, "row position d"]], Tensor]


class CausalModel(Protocol):
    """The language model that causal evaluations need."""

    def logits(
        self, tokens: Int[Tensor, "row position"], *replacements: tuple[Site, Function]
    ) -> Float[Tensor, "row position d_vocab"]:
        """Return the logits of one forward pass, with the activations at sites replaced by a function of them."""
        ...

    def differentiable_logits(
        self, tokens: Int[Tensor, "row position"], *replacements: tuple[Site, Function]
    ) -> Float[Tensor, "row position d_vocab"]:
        """Return what `logits` returns, with a gradient to the tensors that the replacements return."""
        ...

    def activations(
        self, tokens: Int[Tensor, "row position"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "row position d"]]:
        """Return the activations at each site."""
        ...


@dataclass(frozen=True, eq=False)
class Reader:
    """Passes of a language model over prompts.

    Attributes:
        model: the language model.
        rows_at_once: prompts per pass.
        heartbeat: called before each pass; may raise to stop.
        passed: called after each pass with the number of its prompts.
    """

    model: CausalModel
    rows_at_once: int
    heartbeat: Callable[[], None] = lambda: None
    passed: Callable[[int], None] = lambda prompts: None

    def outcomes(
        self, prompts: Prompts, replaced: Callable[[slice], Mapping[Site, Function]] = lambda rows: {}
    ) -> Float[Tensor, " row"]:
        """Return each prompt's outcome.

        Args:
            prompts: the prompts.
            replaced: what replaces activations in the pass over some of the prompts.
        """
        found = []
        for rows, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            outcome = part.outcome(self.model.logits(part.tokens, *replaced(rows).items()))
            # Cloned outside inference mode.
            found.append(outcome.float().clone())
            self.passed(len(part))
        return torch.cat(found)

    def likeliest(self, tokens: Int[Tensor, "row position"]) -> Int[Tensor, " row"]:
        """Return the token that the model finds most probable after each prompt."""
        found = []
        for part in tokens.split(self.rows_at_once):
            self.heartbeat()
            found.append(self.model.logits(part)[:, -1].argmax(1).cpu())
            self.passed(len(part))
        return torch.cat(found)

    def activations(self, prompts: Prompts, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "row position d"]]:
        """Return the activations at each site."""
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for _, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            for site, x in self.model.activations(part.tokens, sites).items():
                found[site].append(x.clone())
            self.passed(len(part))
        return {site: torch.cat(parts) for site, parts in found.items()}

    def gradients(
        self,
        prompts: Prompts,
        sites: Sequence[Site],
        inputs: Mapping[Site, Float[Tensor, "row position d"]] | None = None,
    ) -> tuple[dict[Site, Float[Tensor, "row position d"]], dict[Site, Float[Tensor, "row position d"]]]:
        """Return the activations at sites, and the gradient of each prompt's outcome with respect to them.

        The gradients are total ones: that at an earlier site includes the paths through later sites.

        Args:
            prompts: the prompts.
            sites: the sites.
            inputs: activations that replace the model's own at a site; at other sites they stay.
        """
        at: dict[Site, list[Tensor]] = {site: [] for site in sites}
        gradients: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for rows, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            read: dict[Site, Tensor] = {}

            def kept(site: Site, read: dict[Site, Tensor] = read, rows: slice = rows) -> Function:
                def keep(x: Tensor) -> Tensor:
                    assert torch.is_grad_enabled()
                    own = x if inputs is None or site not in inputs else inputs[site][rows].to(x)
                    # The first site's activations depend on nothing that has a gradient.
                    read[site] = own if own.requires_grad else own.detach().requires_grad_()
                    return read[site]

                return keep

            logits = self.model.differentiable_logits(part.tokens, *((site, kept(site)) for site in sites))
            with torch.enable_grad():
                outcome = part.outcome(logits).sum()
            found = torch.autograd.grad(outcome, [read[site] for site in sites])
            for site, gradient in zip(sites, found, strict=True):
                at[site].append(read[site].detach())
                gradients[site].append(gradient)
            self.passed(len(part))
        return (
            {site: torch.cat(parts) for site, parts in at.items()},
            {site: torch.cat(parts) for site, parts in gradients.items()},
        )

    def integrated_gradient(
        self,
        prompts: Prompts,
        site: Site,
        begin: Float[Tensor, "row position d"],
        end: Float[Tensor, "row position d"],
        steps: int,
    ) -> Float[Tensor, "row position d"]:
        """Return the mean gradient at a site along the straight path between two activations.

        Sundararajan et al. 2017 (arXiv 1703.01365), with the midpoints of `steps` equal intervals: the sum of
        gradient * (end - begin) is outcome(end) - outcome(begin), up to an error of the order of 1 / steps².
        """
        total = torch.zeros_like(begin)
        for step in range(steps):
            x = begin + (step + 0.5) / steps * (end - begin)
            total += self.gradients(prompts, [site], {site: x})[1][site]
        return total / steps
