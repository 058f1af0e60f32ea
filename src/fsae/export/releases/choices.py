"""The table of releases, in the order in which a path is compared with them."""

from fsae.export.releases.circuit_tracer import CIRCUIT_TRACER, CROSS_LAYER_TRANSCODER
from fsae.export.releases.crosscoder_learning import CROSSCODER_LEARNING
from fsae.export.releases.dictionary_learning import DICTIONARY_LEARNING
from fsae.export.releases.gemma_scope import GEMMA_SCOPE
from fsae.export.releases.gemma_scope_2 import GEMMA_SCOPE_2, GEMMA_SCOPE_2_LAYERS
from fsae.export.releases.model_diff import MODEL_DIFF
from fsae.export.releases.openmoss import LLAMA_SCOPE, OPENMOSS
from fsae.export.releases.release import Release
from fsae.export.releases.sparsify import SPARSIFY
from fsae.export.releases.state_dict_file import STATE_DICT_FILE
from fsae.export.saelens import CONFIG, WEIGHTS, read_saelens

SAELENS = Release(
    "SAELens",
    f"{CONFIG} and {WEIGHTS}",
    lambda path: all((path / name).is_file() for name in (CONFIG, WEIGHTS)),
    read_saelens,
)

RELEASES: tuple[Release, ...] = (
    SAELENS,
    GEMMA_SCOPE,
    GEMMA_SCOPE_2,
    GEMMA_SCOPE_2_LAYERS,
    LLAMA_SCOPE,
    OPENMOSS,
    SPARSIFY,
    DICTIONARY_LEARNING,
    CROSSCODER_LEARNING,
    MODEL_DIFF,
    CIRCUIT_TRACER,
    CROSS_LAYER_TRANSCODER,
    STATE_DICT_FILE,
)
