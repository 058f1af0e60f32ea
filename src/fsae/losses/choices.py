"""The table of loss terms: the name of each, for `conf/loss` and `conf/penalty`, and its settings."""

from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.code_norm import CodeNorm
from fsae.losses.decorrelation import Decorrelation
from fsae.losses.fisher import Fisher, NoPenalty, RandomSign
from fsae.losses.matryoshka import LevelAuxK, Matryoshka, SampledMatryoshka
from fsae.losses.nuclear_norm import NuclearNorm
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, AnnealedLp, DenseLatents, StepL0, TanhL0, TargetL0
from fsae.losses.temporal import TemporalContrast
from fsae.losses.term import LossTerm
from fsae.losses.weights import Orthogonality, WeightNorm

CHOICES: dict[str, type[LossTerm]] = {
    "squared_error": SquaredError,
    "matryoshka": Matryoshka,
    "sampled_matryoshka": SampledMatryoshka,
    "l1": L1,
    "annealed_lp": AnnealedLp,
    "dense_latents": DenseLatents,
    "step_l0": StepL0,
    "tanh_l0": TanhL0,
    "target_l0": TargetL0,
    "gate_reconstruction": GateReconstruction,
    "aux_k": AuxK,
    "level_aux_k": LevelAuxK,
    "fisher": Fisher,
    "none": NoPenalty,
    "random_sign": RandomSign,
    "decorrelation": Decorrelation,
    "orthogonal": Orthogonality,
    "weight_norm": WeightNorm,
    "nuclear_norm": NuclearNorm,
    "code_norm": CodeNorm,
    "temporal_contrast": TemporalContrast,
}
