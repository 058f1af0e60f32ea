"""The graph of a circuit, in the format of circuit-tracer's attribution graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fsae.evaluation.causal.edges import Edge, Node
from fsae.language_models.sites import Site


@dataclass(frozen=True, eq=False)
class Graph:
    """The strongest nodes of a circuit with the edges between them.

    Attributes:
        task: its name.
        model: the language model.
        tokens: of one of the prompts.
        answers: the right and the wrong answer to that prompt.
        prompts: prompts over which effects and weights are means.
        widths: by site, the number of latents of its dictionary.
        effects: of each node on the outcome.
        edges: between the nodes, and from nodes to the outcome.
    """

    task: str
    model: str
    tokens: Sequence[str]
    answers: tuple[str, str]
    prompts: int
    widths: Mapping[Site, int]
    effects: Mapping[Node, float]
    edges: Sequence[Edge]

    def as_json(self, name: str) -> dict[str, Any]:
        """Return the graph as circuit-tracer and Neuronpedia read it.

        A node's `layer` is the block of its site; if two sites are in one block, it is the number of the site in the
        order of a forward pass. `influence` is the effect on the outcome. The last node is the outcome.

        Args:
            name: of the graph.
        """
        right, wrong = self.answers
        last = len(self.tokens) - 1
        outcome_layer = max(self._layers.values()) + 1
        outcome = {
            "node_id": f"{outcome_layer}_0_{last}",
            "feature": 0,
            "layer": str(outcome_layer),
            "ctx_idx": last,
            "feature_type": "logit",
            "token_prob": 0.0,
            "is_target_logit": True,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"L_0-{last}",
            "clerp": f"logit({right!r}) - logit({wrong!r})",
            "influence": None,
            "activation": None,
        }
        return {
            "metadata": {
                "slug": name,
                "scan": self.model,
                "transcoder_list": [str(site) for site in self.widths],
                "prompt_tokens": list(self.tokens),
                "prompt": "".join(self.tokens),
                "node_threshold": None,
                "schema_version": 1,
                "info": {
                    "description": f"Task {self.task}. Nodes are latents and reconstruction errors of sparse "
                    f"autoencoders. Effects and edges are first-order, by gradients: means over {self.prompts} prompts "
                    "like this one, in logits. Attention, norms and MLPs between the sites are not linear, so edges do "
                    "not sum to the effects exactly.",
                    "generator": {"name": "fsae", "version": version("fsae")},
                },
                "edges": "first-order",
            },
            "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
            "nodes": [*(self._node(node, effect) for node, effect in self.effects.items()), outcome],
            "links": [
                {
                    "source": self._id(edge.source),
                    "target": outcome["node_id"] if edge.target is None else self._id(edge.target),
                    "weight": edge.weight,
                }
                for edge in self.edges
            ],
        }

    @property
    def _layers(self) -> dict[Site, int]:
        sites = sorted(self.widths, key=lambda site: site.place)
        if len({site.layer for site in sites}) == len(sites):
            return {site: site.layer for site in sites}
        return {site: number for number, site in enumerate(sites)}

    def _is_error(self, node: Node) -> bool:
        return node.latent == self.widths[node.site]

    def _id(self, node: Node) -> str:
        return f"{self._layers[node.site]}_{-1 if self._is_error(node) else node.latent}_{node.position}"

    def _node(self, node: Node, effect: float) -> dict[str, Any]:
        layer, error = self._layers[node.site], self._is_error(node)
        latent = -1 if error else node.latent
        return {
            "node_id": self._id(node),
            # circuit-tracer names a latent of a layer by Cantor's pairing of the two numbers.
            "feature": -1 if error else (layer + latent) * (layer + latent + 1) // 2 + latent,
            "layer": str(layer),
            "ctx_idx": node.position,
            "feature_type": "sae reconstruction error" if error else "sae",
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{layer}_-1-{node.position}" if error else f"{layer}_{latent}-0",
            "clerp": f"{node.site} {'error' if error else f'latent {latent}'}",
            "influence": effect,
            "activation": None,
        }
