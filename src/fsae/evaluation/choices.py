"""The table of evaluations: the name of each and its settings. `eval=` lists YAML files of `conf/eval`."""

from fsae.evaluation.absorption import Absorption
from fsae.evaluation.agreement import Agreement
from fsae.evaluation.code import Code
from fsae.evaluation.concepts import Concepts
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.geometry import Geometry
from fsae.evaluation.latents import Latents
from fsae.evaluation.splice import Splice
from fsae.evaluation.truth import Truth
from fsae.evaluation.vectors import Vectors

CHOICES: dict[str, type[Evaluation]] = {
    "vectors": Vectors,
    "splice": Splice,
    "truth": Truth,
    "agreement": Agreement,
    "geometry": Geometry,
    "latents": Latents,
    "absorption": Absorption,
    "code": Code,
    "concepts": Concepts,
}
