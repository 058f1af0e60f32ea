"""The settings of a language model: where its weights are, and how they are run."""

from dataclasses import dataclass, field
from enum import Enum

from fsae.ranges import Ranged, between


class Package(Enum):
    """Models that need no hub: two that install from the package registry, and a tiny random one made on the spot."""

    smollm2_135m_instruct_q4_1 = "smollm2_135m_instruct_q4_1"
    gemma3_270m_q4_k_m = "gemma3_270m_q4_k_m"
    tiny = "tiny"


class DType(Enum):
    """The floating-point type of the weights and so of the activations; `auto` is bfloat16 on devices that multiply in
    it, and float32 elsewhere."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Weights(Enum):
    """`random` draws the model's weights anew, as they were before it was trained: a control. What is found in its
    activations is in the architecture and the text, and was not learned."""

    pretrained = "pretrained"
    random = "random"


class Device(Enum):
    """Where the model runs; `auto` is the GPU if there is one. CUDA_VISIBLE_DEVICES chooses among several."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Ranged, group="model"):
    """One language model; exactly one of `package` and `path` says where it comes from.

    Attributes:
        name: what runs and tables call it.
        path: a folder in Hugging Face's layout, or a name on its hub.
        revision: branch, tag or commit of a hub model; None is the default branch.
        package: a model that needs no hub.
        weights: those that it was published with, or random ones.
        batch_size: sequences per forward pass; null for as many as fit the device.

    Raises:
        ValueError: both or neither of `package` and `path` are set, a revision without a path, a batch size below 1.
    """

    name: str
    path: str | None = None
    revision: str | None = None
    package: Package | None = None
    weights: Weights = Weights.pretrained
    dtype: DType = DType.auto
    device: Device = Device.auto
    batch_size: int | None = field(default=None, metadata=between(least=1, most=10**9, meaning="a number of sequences"))

    def __post_init__(self):
        super().__post_init__()
        if (self.path is None) == (self.package is None):
            found = "both are null" if self.path is None else f"found {self.path!r} and {self.package}"
            raise ValueError(
                f"model.path and model.package: set exactly one ({found}); a package is one of "
                f"{', '.join(package.name for package in Package)}; set the other one to null"
            )
        if self.revision is not None and self.path is None:
            raise ValueError(f"model.revision is {self.revision!r}, but a packaged model has none; leave it null")
