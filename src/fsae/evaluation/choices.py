"""The table of evaluations: the name of each and its settings. `eval=` lists YAML files of `conf/eval`."""

from fsae.evaluation.absorption import Absorption
from fsae.evaluation.agreement import Agreement
from fsae.evaluation.amortisation import Amortisation
from fsae.evaluation.attention import AttentionHeads
from fsae.evaluation.autointerp import Autointerp
from fsae.evaluation.circuits import Circuits
from fsae.evaluation.code import Code
from fsae.evaluation.concepts import Concepts
from fsae.evaluation.crosscoder import Crosscoder
from fsae.evaluation.decoder_projection import DecoderProjection
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.geometry import Geometry
from fsae.evaluation.influence import Influence
from fsae.evaluation.jacobian import Jacobian
from fsae.evaluation.latents import Latents
from fsae.evaluation.mdl import Mdl
from fsae.evaluation.ood import Ood
from fsae.evaluation.probing import Probing
from fsae.evaluation.ravel import Ravel
from fsae.evaluation.scr import Scr
from fsae.evaluation.splice import Splice
from fsae.evaluation.stability import Stability
from fsae.evaluation.tpp import Tpp
from fsae.evaluation.truth import Truth
from fsae.evaluation.vectors import Vectors

CHOICES: dict[str, type[Evaluation]] = {
    "vectors": Vectors,
    "splice": Splice,
    "truth": Truth,
    "agreement": Agreement,
    "crosscoder": Crosscoder,
    "jacobian": Jacobian,
    "geometry": Geometry,
    "latents": Latents,
    "absorption": Absorption,
    "code": Code,
    "stability": Stability,
    "decoder_projection": DecoderProjection,
    "amortisation": Amortisation,
    "mdl": Mdl,
    "circuits": Circuits,
    "influence": Influence,
    "attention": AttentionHeads,
    "probing": Probing,
    "ood": Ood,
    "ravel": Ravel,
    "concepts": Concepts,
    "autointerp": Autointerp,
    "scr": Scr,
    "tpp": Tpp,
}
