"""Forward and backward passes over prompts: outcomes with replaced activations, and gradients at sites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.evaluation.causal.prompts import Prompts
from fsae.evaluation.kept import Keeper, computed, digest_of_tensor
from fsae.language_models.sites import Site

Function = Callable[[Float[Tensor, "row position d"]], Tensor]


class CausalModel(Protocol):
    """The language model that causal evaluations need."""

    @property
    def device(self) -> torch.device:
        """The device on which it runs."""
        ...

    def logits(
        self,
        tokens: Int[Tensor, "row position"],
        *replacements: tuple[Site, Function],
        at: Int[Tensor, " row"] | None = None,
    ) -> Float[Tensor, "row position d_vocab"]:
        """Return the logits of one forward pass, with the activations at sites replaced by a function of them.

        With `at` only one position of each row has logits.
        """
        ...

    def differentiable_logits(
        self,
        tokens: Int[Tensor, "row position"],
        *replacements: tuple[Site, Function],
        at: Int[Tensor, " row"] | None = None,
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
        keeper: keeps what passes find that replace nothing: they are the same for all dictionaries.
    """

    model: CausalModel
    rows_at_once: int
    heartbeat: Callable[[], None] = lambda: None
    passed: Callable[[int], None] = lambda prompts: None
    keeper: Keeper = computed

    def outcomes(
        self, prompts: Prompts, replaced: Callable[[slice], Mapping[Site, Function]] | None = None
    ) -> Float[Tensor, " row"]:
        """Return each prompt's outcome.

        Args:
            prompts: the prompts.
            replaced: what replaces activations in the pass over some of the prompts; None for nothing.
        """
        if replaced is not None:
            return self._outcomes(prompts, replaced)
        return self._kept(
            f"outcome of {type(prompts).__name__}",
            _tensors(prompts),
            (),
            lambda: {"": self._outcomes(prompts, lambda rows: {})},
        )[""]

    def _outcomes(
        self, prompts: Prompts, replaced: Callable[[slice], Mapping[Site, Function]]
    ) -> Float[Tensor, " row"]:
        found = []
        for rows, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            outcome = part.outcome(self.model.logits(part.tokens, *replaced(rows).items(), at=_last(part.tokens)))
            # Cloned outside inference mode.
            found.append(outcome.float().clone())
            self.passed(len(part))
        return torch.cat(found)

    def likeliest(self, tokens: Int[Tensor, "row position"]) -> Int[Tensor, " row"]:
        """Return the token that the model finds most probable after each prompt."""
        return self._kept("likeliest", {"tokens": tokens}, (), lambda: {"": self._likeliest(tokens)})[""].cpu()

    def _likeliest(self, tokens: Int[Tensor, "row position"]) -> Int[Tensor, " row"]:
        found = []
        for part in tokens.split(self.rows_at_once):
            self.heartbeat()
            found.append(self.model.logits(part, at=_last(part))[:, -1].argmax(1).cpu())
            self.passed(len(part))
        return torch.cat(found)

    def activations(self, prompts: Prompts, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "row position d"]]:
        """Return the activations at each site."""
        found = self._kept("activations", {"tokens": prompts.tokens}, sites, lambda: self._activations(prompts, sites))
        return {site: found[str(site)] for site in sites}

    def _activations(self, prompts: Prompts, sites: Sequence[Site]) -> dict[str, Float[Tensor, "row position d"]]:
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for _, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            for site, x in self.model.activations(part.tokens, sites).items():
                found[site].append(x.clone())
            self.passed(len(part))
        return {str(site): torch.cat(parts) for site, parts in found.items()}

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
        if inputs is not None:
            return self._gradients(prompts, sites, inputs)

        def compute() -> dict[str, Tensor]:
            at, gradients = self._gradients(prompts, sites, {})
            return {f"at {site}": at[site] for site in sites} | {f"of {site}": gradients[site] for site in sites}

        found = self._kept(f"gradient of {type(prompts).__name__}", _tensors(prompts), sites, compute)
        return {site: found[f"at {site}"] for site in sites}, {site: found[f"of {site}"] for site in sites}

    def _gradients(
        self, prompts: Prompts, sites: Sequence[Site], inputs: Mapping[Site, Float[Tensor, "row position d"]]
    ) -> tuple[dict[Site, Float[Tensor, "row position d"]], dict[Site, Float[Tensor, "row position d"]]]:
        at: dict[Site, list[Tensor]] = {site: [] for site in sites}
        gradients: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for rows, part in prompts.parts(self.rows_at_once):
            self.heartbeat()
            read: dict[Site, Tensor] = {}

            def kept(site: Site, read: dict[Site, Tensor] = read, rows: slice = rows) -> Function:
                def keep(x: Tensor) -> Tensor:
                    assert torch.is_grad_enabled()
                    own = x if site not in inputs else inputs[site][rows].to(x)
                    # The first site's activations depend on nothing that has a gradient.
                    read[site] = own if own.requires_grad else own.detach().requires_grad_()
                    return read[site]

                return keep

            logits = self.model.differentiable_logits(
                part.tokens, *((site, kept(site)) for site in sites), at=_last(part.tokens)
            )
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

    def _kept(
        self,
        what: str,
        prompts: Mapping[str, Tensor],
        sites: Sequence[Site],
        compute: Callable[[], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return what passes that replace nothing find, on the model's device."""
        content = {
            "passes": what,
            "sites": [str(site) for site in sites],
            "prompts": {name: digest_of_tensor(each) for name, each in prompts.items()},
            # The last bits depend on the rows of a pass.
            "rows_at_once": self.rows_at_once,
        }
        is_read = True

        def reading() -> Mapping[str, Tensor]:
            nonlocal is_read
            is_read = False
            return compute()

        found = self.keeper(content, reading)
        if is_read:
            self.passed(len(prompts["tokens"]))
        return {name: tensor.to(self.model.device) for name, tensor in found.items()}

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


def _last(tokens: Int[Tensor, "row position"]) -> Int[Tensor, " row"]:
    """Return the last position of each row, on which alone outcomes depend."""
    return torch.full((len(tokens),), tokens.shape[1] - 1)


def _tensors(prompts: Prompts) -> dict[str, Tensor]:
    return {each.name: getattr(prompts, each.name) for each in fields(prompts)}
