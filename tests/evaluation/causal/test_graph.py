"""The graph in circuit-tracer's format."""

from fsae.evaluation.causal.edges import Edge, Node
from fsae.evaluation.causal.graph import Graph
from fsae.language_models.sites import Site, SiteName
from tests.evaluation.causal.toy import EARLY, LATE

LATENT, ERROR = Node(EARLY, 0, 7), Node(LATE, 2, 16)


def graph_of(widths: dict[Site, int], latent: Node = LATENT) -> Graph:
    return Graph(
        task="simple",
        model="linear",
        tokens=[" one", " near", " old"],
        answers=(" is", " are"),
        prompts=8,
        widths=widths,
        effects={latent: 0.75, ERROR: -0.25},
        edges=[Edge(latent, ERROR, 0.5), Edge(ERROR, None, -0.25)],
    )


def test_nodes_and_links_have_the_fields_of_the_format():
    written = graph_of({EARLY: 8, LATE: 16}).as_json("own")
    assert set(written) == {"metadata", "qParams", "nodes", "links"}
    assert written["metadata"]["prompt"] == " one near old"
    assert written["metadata"]["edges"] == "first-order"
    latent, error, outcome = written["nodes"]
    assert latent["node_id"] == "0_7_0"
    # Cantor's pairing of layer 0 and latent 7: (0 + 7) * (0 + 7 + 1) / 2 + 7.
    assert (latent["feature"], latent["layer"], latent["ctx_idx"]) == (35, "0", 0)
    assert (latent["feature_type"], latent["influence"]) == ("sae", 0.75)
    assert (error["node_id"], error["feature"], error["clerp"]) == ("1_-1_2", -1, "resid_post.1 error")
    assert (outcome["node_id"], outcome["feature_type"]) == ("2_0_2", "logit")
    assert outcome["clerp"] == "logit(' is') - logit(' are')"
    assert written["links"] == [
        {"source": "0_7_0", "target": "1_-1_2", "weight": 0.5},
        {"source": "1_-1_2", "target": "2_0_2", "weight": -0.25},
    ]


def test_two_sites_of_one_block_have_layers_of_their_own():
    middle = Site(name=SiteName.mlp_out, layer=1)
    written = graph_of({LATE: 16, middle: 8}, Node(middle, 0, 7)).as_json("own")
    # mlp_out is reached before resid_post.
    assert [node["layer"] for node in written["nodes"]] == ["0", "1", "2"]
    assert len({node["node_id"] for node in written["nodes"]}) == 3
