"""Settings that architectures share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fsae.autoencoders.layout import Ends
from fsae.ranges import INNER_SHARE, SEED, Ranged, between

if TYPE_CHECKING:
    from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder


def count_in(config: Mapping[str, Any], key: str) -> int:
    """Return a count from `cfg.json`.

    Raises:
        ValueError: it is missing, or no positive whole number.
    """
    count = config.get(key)
    # To Python True is the whole number 1.
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{key} is {count!r}; it must be a positive whole number")
    return count


def number_in(config: Mapping[str, Any], key: str, default: float) -> float:
    """Return a number from `cfg.json`, or `default` if it is missing.

    Raises:
        ValueError: it is no number.
    """
    number = config.get(key, default)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise ValueError(f"{key} is {number!r}; it must be a number")
    return float(number)


def flag_in(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a flag from `cfg.json`, or `default` if it is missing.

    Raises:
        ValueError: it is no flag.
    """
    flag = config.get(key, default)
    if not isinstance(flag, bool):
        raise ValueError(f"{key} is {flag!r}; it must be true or false")
    return flag


class DecoderNorm(Enum):
    """The constraint on the norms of the decoder's rows.

    `unit` renormalises the rows after every step. `free` does not; sparsity terms weigh each code by the norm of its
    row, so that a long row does not make a code cheap.
    """

    unit = "unit"
    free = "free"


class DecoderInit(Enum):
    """The start of the decoder's rows, which get the norm `init_norm`.

    Rows that start from data are alike, and many that are on together would overshoot: an encoder with weights of its
    own then starts with columns that are shorter by one factor, so that the first reconstructions have the length of
    least squares.

    random: independent directions.
    kmeans: directions from b_dec to the centroids of the first targets. Between two layouts the encoder's columns start
        as the directions of the inputs of the same clusters, unless `encoder_init` is `random`.
    active_subspace: random directions in the space of the leading principal components of the first targets
        (arXiv 2508.16929).
    mlp: for a transcoder of an MLP, directions of what the MLP writes if its input moves from the mean along the
        encoder's column, by as much as inputs do.
    zeros: rows of zeros, so that the first reconstruction is b_dec. The encoder starts as with `random`.
    """

    random = "random"
    kmeans = "kmeans"
    active_subspace = "active_subspace"
    mlp = "mlp"
    zeros = "zeros"

    @property
    def from_data(self) -> bool:
        """True if the rows depend on the first vectors."""
        return self in (DecoderInit.kmeans, DecoderInit.active_subspace, DecoderInit.mlp)


class EncoderInit(Enum):
    """The start of the encoder.

    `transpose` starts it as the transpose of the decoder, `random` draws it independently, and `tied` keeps it the
    transpose of the decoder in training: one parameter, trained through both. If the input and the target have
    different layouts, `transpose` draws it independently too, and `tied` is refused.
    """

    transpose = "transpose"
    random = "random"
    tied = "tied"


class BiasInit(Enum):
    """The start of `b_dec`: zeros, or the mean or geometric median of the first activations."""

    zeros = "zeros"
    mean = "mean"
    geometric_median = "geometric_median"


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Ranged, ABC, group="arch"):
    """Settings of every autoencoder: its size.

    Attributes:
        expansion: d_sae as a multiple of d_in; used if `d_sae` is null.
        d_sae: number of latents, or null.
    """

    expansion: float = field(default=8.0, metadata=between(above=0, most=2**16))
    d_sae: int | None = field(default=None, metadata=between(least=1, most=2**28, meaning="a number of latents"))

    # Fields of the forward record beyond the common ones. A loss term names the fields that it needs.
    provides: ClassVar[frozenset[str]] = frozenset({"pre_activations"})
    # Whether pre-activations are an affine map of the inputs.
    affine_encoder: ClassVar[bool] = True
    # Whether every sample has the same number of codes, so that their positions are known without counting.
    fixed_k: ClassVar[bool] = False
    # Whether the settings say how many latents are on per sample, at least on average.
    has_k: ClassVar[bool] = False
    # Whether the weights are fitted without gradients (`trainer=fit`).
    fitted: ClassVar[bool] = False
    # True if codes have a gradient in the weights.
    differentiable_codes: ClassVar[bool] = True
    # Names under which SAELens' format holds this architecture, and its tensors of shape (d_sae,) there.
    saelens_names: ClassVar[tuple[str, ...]] = ()
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_enc",)

    @property
    def name(self) -> str:
        """The architecture's name in messages."""
        return type(self).__name__.removesuffix("Settings")

    @property
    def reads_decoder(self) -> bool:
        """True if codes depend on the decoder by more than `encoder_init: tied`."""
        return False

    @property
    def frees_decoder_norms(self) -> bool:
        """True if training may give the decoder's rows any norm."""
        return False

    def width(self, d_in: int) -> int:
        """Return the number of latents for inputs of width d_in."""
        if self.d_sae is not None:
            return self.d_sae
        width = round(self.expansion * d_in)
        if width < 1:
            raise ValueError(
                f"arch.expansion is {self.expansion:g}, which gives no latent for vectors of width {d_in}; raise it, "
                "or set arch.d_sae"
            )
        return width

    def check_width(self, d_in: int) -> None:
        """Raise ValueError if a setting is impossible for inputs of width d_in."""

    def check_ends(self, ends: Ends) -> None:
        """Raise ValueError if a setting is impossible for inputs and targets of these layouts."""
        # Raises if there would be no latent, or none of a block.
        ends.latents(self.width(ends.input.width))
        self.check_width(ends.input.width)

    @property
    def known_dictionary(self) -> str | None:
        """The path of a dictionary from which the weights start; None for none."""
        return None

    @property
    def starts_from_mlp(self) -> bool:
        """True if the weights start from the MLP between the inputs and the targets."""
        return False

    @property
    def same_start(self) -> str | None:
        """The setting by which all seeds start from the same decoder; None if each has its own."""
        return None

    def density(self, d_in: int, progress: float) -> float:
        """Return the share of codes that are on after a share `progress` (0 to 1) of the training.

        It is one half if the settings do not say it.
        """
        return 0.5

    @abstractmethod
    def build(self, ends: Ends | int, generator: torch.Generator) -> "Autoencoder":
        """Build an autoencoder with fresh weights, drawn from `generator`.

        Args:
            ends: the layouts of its inputs and targets; a number is the width of both.
            generator: of the weights.
        """

    def saelens_shapes(self, ends: Ends | int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its tensors in SAELens' format, by name."""
        ends = Ends.of(ends)
        d_in, d_out = ends.input.width, ends.target.width
        d_sae = self.width(d_in)
        per_latent = dict.fromkeys(self.saelens_vectors, (d_sae,))
        skip = {"W_skip": (d_out, d_in)} if ends.skip else {}
        return {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), **skip, **per_latent}

    @classmethod
    @abstractmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        """Return the settings of an autoencoder in SAELens' format.

        Args:
            architecture: one of `saelens_names`.
            config: what `cfg.json` holds.
            d_sae: number of latents.

        Raises:
            ValueError: a key is missing or has an impossible value.
        """


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoderSettings(AutoencoderSettings):
    """Settings of every autoencoder that gradient steps train.

    Attributes:
        apply_b_dec_to_input: subtract b_dec from the input before encoding, if the input has the target's layout.
        decoder_norm: the constraint on the norms of the decoder's rows.
        encoder_init: how W_enc starts, and whether it stays the decoder's transpose.
        decoder_init: how W_dec starts.
        active_rank: principal components of `decoder_init: active_subspace`; null for half of the targets' width.
        kmeans_seed: of `decoder_init: kmeans`. Runs that share it, on the same vectors, start from the same decoder
            whatever their `seed` is (arXiv 2606.02061); null to draw it from the run's seed.
        warm_start: a run's folder, or the folder or file of a dictionary. Its first latents replace as many of the new
            ones, in the unit of this training, and b_dec is taken from it; other latents start as without it. Each
            member of a population starts from its own dictionary of a run of as many.
        init_norm: norm of the decoder's rows at the start (1 under `decoder_norm: unit`).
        b_dec_init: the start of b_dec.
        align_encoder: keep the product of each latent's encoder column and decoder row at 1, so that the encoder reads
            the latent's own contribution at its true size (aligned training, arXiv 2605.18629).
        archetype_distance: keep each decoder row within this distance of a convex combination of the rows from which
            the decoder starts, up to one factor of all rows, which is learned (RA-SAE, arXiv 2502.12892, where it is 1
            and the decoder starts from k-means); null for any rows.
    """

    apply_b_dec_to_input: bool = True
    decoder_norm: DecoderNorm = DecoderNorm.unit
    encoder_init: EncoderInit = EncoderInit.transpose
    decoder_init: DecoderInit = DecoderInit.random
    active_rank: int | None = field(default=None, metadata=between(least=1, most=2**28, meaning="a rank"))
    kmeans_seed: int | None = field(default=0, metadata=SEED)
    warm_start: str | None = None
    init_norm: float = field(default=1.0, metadata=between(above=0, most=10**6))
    b_dec_init: BiasInit = BiasInit.geometric_median
    align_encoder: bool = False
    archetype_distance: float | None = field(default=None, metadata=between(least=0, most=10**6))

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_norm is DecoderNorm.unit and self.init_norm != 1.0:
            raise ValueError(
                f"arch.init_norm is {self.init_norm} but arch.decoder_norm is unit, which makes it 1 after one step; "
                "set arch.decoder_norm=free"
            )
        if self.active_rank is not None and self.decoder_init is not DecoderInit.active_subspace:
            raise ValueError(
                f"arch.active_rank is {self.active_rank}, but arch.decoder_init is {self.decoder_init.name}; set "
                "arch.decoder_init=active_subspace, or leave arch.active_rank out"
            )
        if self.decoder_init is DecoderInit.zeros:
            self._check_zeros()
        if self.archetype_distance is not None and self.decoder_norm is DecoderNorm.unit:
            raise ValueError(
                f"arch.archetype_distance is {self.archetype_distance:g}, and convex combinations are no unit vectors, "
                "as arch.decoder_norm=unit requires; set arch.decoder_norm=free"
            )
        if self.align_encoder and self.tied:
            raise ValueError(
                "arch.align_encoder moves the encoder alone, and arch.encoder_init=tied makes it the transpose of the "
                "decoder; set arch.encoder_init=transpose, or arch.align_encoder=false"
            )

    def _check_zeros(self) -> None:
        """Raise ValueError if a setting does not work with decoder rows of zeros."""
        for is_set, key, instead in (
            (self.decoder_norm is DecoderNorm.unit, "arch.decoder_norm=unit", "arch.decoder_norm=free"),
            (self.tied, "arch.encoder_init=tied", "arch.encoder_init=transpose"),
            (self.align_encoder, "arch.align_encoder=true", "arch.align_encoder=false"),
            (self.archetype_distance is not None, "arch.archetype_distance", "arch.archetype_distance=null"),
        ):
            if is_set:
                raise ValueError(
                    f"arch.decoder_init is zeros, and rows of zeros have no direction, which {key} needs; set {instead}"
                )

    @property
    def known_dictionary(self) -> str | None:
        return self.warm_start

    @property
    def starts_from_mlp(self) -> bool:
        return self.decoder_init is DecoderInit.mlp

    @property
    def same_start(self) -> str | None:
        by_clusters = self.decoder_init is DecoderInit.kmeans and self.kmeans_seed is not None
        return "arch.kmeans_seed" if by_clusters else None

    @property
    def tied(self) -> bool:
        """True if the encoder has no weights of its own."""
        return self.encoder_init is EncoderInit.tied

    @property
    def frees_decoder_norms(self) -> bool:
        return self.decoder_norm is DecoderNorm.free

    @property
    def weighs_scores(self) -> bool:
        """True if latents compete by weighted pre-activations."""
        return False

    @property
    def bias_density(self) -> float | None:
        """The share of the first vectors on which each latent's bias should switch it on; None leaves the biases."""
        return None

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        if ends.blocks and not self.affine_encoder:
            raise ValueError(
                f"arch {self.name} encodes what it has made of all parts together, so no latent reads some parts only; "
                "choose another arch, or a layout whose latents read all parts (layout.latents=shared "
                "layout.exclusive=0)"
            )
        if ends.blocks and self.archetype_distance is not None:
            raise ValueError(
                f"arch.archetype_distance is {self.archetype_distance:g}, which mixes rows of all latents, but the "
                "layout lets latents write some parts only; set arch.archetype_distance=null, or choose a layout whose "
                "latents write all parts (layout.latents=shared layout.exclusive=0)"
            )
        if self.active_rank is not None and self.active_rank > ends.target.width:
            raise ValueError(
                f"arch.active_rank is {self.active_rank}, but vectors of width {ends.target.width} have as many "
                "principal components; lower it, or leave it out"
            )
        if self.tied and not ends.same:
            raise ValueError(
                "arch.encoder_init is tied, but the dictionary reads other vectors than it writes, so the decoder's "
                "transpose is no encoder; set arch.encoder_init=random, or layout=autoencoder"
            )
        if self.align_encoder and not ends.same:
            raise ValueError(
                "arch.align_encoder compares a latent's encoder column with its decoder row, but the dictionary reads "
                "other vectors than it writes; set arch.align_encoder=false, or layout=autoencoder"
            )

    @abstractmethod
    def build(self, ends: Ends | int, generator: torch.Generator) -> "SparseAutoencoder":
        """Build an autoencoder with fresh weights, drawn from `generator`."""

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        return cls(
            d_sae=d_sae,
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
            decoder_norm=DecoderNorm.free,
        )


@dataclass(frozen=True, kw_only=True)
class RectifiedSettings(SparseAutoencoderSettings):
    """Settings of the architectures in which each latent is switched on independently of the others.

    Attributes:
        init_density: share of the first vectors on which each latent is on at the start; its bias is set accordingly.
            Null leaves the biases at zero, and about half of all latents on. A small share makes the first steps
            sparse, and no latent starts dead.
    """

    init_density: float | None = field(default=None, metadata=INNER_SHARE)

    @property
    def bias_density(self) -> float | None:
        return self.init_density

    def density(self, d_in: int, progress: float) -> float:
        return super().density(d_in, progress) if self.init_density is None else self.init_density
