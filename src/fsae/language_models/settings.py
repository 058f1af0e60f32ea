"""Settings of a language model: where its weights come from, and how it runs."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Self

from fsae.naming import last_part
from fsae.ranges import SEED, Ranged, between


class Package(Enum):
    """Models that need no hub: two that install from the package registry, and a tiny random one that fsae makes."""

    smollm2_135m_instruct_q4_1 = "smollm2_135m_instruct_q4_1"
    gemma3_270m_q4_k_m = "gemma3_270m_q4_k_m"
    tiny = "tiny"


class DType(Enum):
    """The floating-point type of the weights and activations; `auto` is bfloat16 on devices that multiply in bfloat16,
    and float32 on others."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Weights(Enum):
    """The origin of the weights: the published ones, or those of a control.

    `random` initialises the model as before its training (arXiv 2501.17727): structure in its activations comes from
    the architecture and the text, and was not learned. `permuted` shuffles the rows of each of the published matrices,
    so that every matrix keeps its entries, and matrices no longer fit each other.
    """

    pretrained = "pretrained"
    random = "random"
    permuted = "permuted"


class Device(Enum):
    """The device that the model runs on; `auto` is the GPU if there is one. CUDA_VISIBLE_DEVICES chooses among GPUs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Ranged, group="model"):
    """A language model; exactly one of `package` and `path` is set.

    Attributes:
        path: a folder in Hugging Face's layout, or a name on its hub.
        revision: branch, tag or commit of a hub model; null is the default branch.
        package: a packaged model, which needs no hub.
        tokenizer: another model's tokenizer, as a folder or a hub name; null for the model's own.
        weights: the published weights, or those of a control.
        weights_seed: of the random weights, or of the permutations.
        batch_size: sequences per forward pass; null for as many as fit the device.

    Raises:
        ValueError: both or neither of `package` and `path` are set, a revision without a path, a batch size below 1.
    """

    path: str | None = None
    revision: str | None = None
    package: Package | None = None
    tokenizer: str | None = None
    weights: Weights = Weights.pretrained
    weights_seed: int = field(default=0, metadata=SEED)
    dtype: DType = DType.auto
    device: Device = Device.auto
    batch_size: int | None = field(default=None, metadata=between(least=1, most=10**9, meaning="a number of sequences"))

    def __post_init__(self):
        super().__post_init__()
        packages = ", ".join(package.name for package in Package)
        path, weights = self.setting("path"), self.setting("weights")
        if not self.path and self.package is None:
            raise ValueError(
                f"{path} is not set; add {path}=FOLDER_OR_HUB_NAME, or set "
                f"{self.setting('package')} to one of {packages}"
            )
        if self.path is not None and self.package is not None:
            raise ValueError(
                f"{path} and {self.setting('package')}: set exactly one (found {self.path!r} and {self.package.name}); "
                f"a package is one of {packages}; set the other one to null"
            )
        if self.revision is not None and self.path is None:
            raise ValueError(
                f"{self.setting('revision')} is {self.revision!r}, but a packaged model has none; leave it null"
            )
        if self.weights is Weights.pretrained and self.weights_seed != 0:
            raise ValueError(
                f"{self.setting('weights_seed')} is {self.weights_seed}, but published weights have no seed; leave it "
                f"out, or set {weights}=random or {weights}=permuted"
            )

    @property
    def name(self) -> str:
        """The model's name in run names and tables: its package or the last part of its path, and which weights it has
        if they are those of a control."""
        control = "" if self.weights is Weights.pretrained else f"-{self.weights.name}_weights"
        if self.package is not None:
            return f"{self.package.name}{control}"
        assert self.path is not None
        return f"{last_part(self.path)}{control}"

    @property
    def described(self) -> str:
        """The model's name in messages."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class OtherModelSettings(ModelSettings, group="layout.model"):
    """The second model of a crosscoder: the same settings, which messages name as those of `layout.model`."""

    @classmethod
    def of(cls, settings: ModelSettings) -> Self:
        """Return the settings of a model as those of the second one."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(settings)})

    @property
    def described(self) -> str:
        return f"{self.name} (layout.model)"
