"""Autoencoders: weights, one forward record, the algebra of the weights, and one class for training and inference."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fsae.autoencoders.initialisation import SCALED_BY, FirstVectors, first_decoder, geometric_median, levels
from fsae.autoencoders.layout import Ends, Factor, PartNorm
from fsae.autoencoders.record import DecidingMap, Encoding, ForwardRecord, SAELensForm
from fsae.autoencoders.settings import (
    AutoencoderSettings,
    BiasInit,
    DecoderNorm,
    EncoderInit,
    SparseAutoencoderSettings,
)
from fsae.autoencoders.warm_start import take_over
from fsae.sparse.codes import Codes
from fsae.sparse.encoder_product import ENTRIES_AT_ONCE, encoder_product
from fsae.sparse.pattern import Pattern
from fsae.sparse.regions import Region, decode_within

# The norm of a resampled latent's encoder column, as a share of the live latents' mean norm.
RESAMPLED_SHARE = 0.2


class Autoencoder(nn.Module, ABC):
    """A map x -> codes -> codes @ W_dec + b_dec, trained by gradients or fitted without.

    W_enc is (d_in, d_sae) and W_dec (d_sae, d_out). W_enc lies transposed in memory, because the sparse products read
    and write whole rows of one latent in both matrices.

    Attributes:
        ends: the layouts of what it reads and of what it writes.
    """

    W_enc: Tensor
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    # Entries of the encoder's product in memory at a time, on a CPU and with sparse codes.
    product_entries: int = ENTRIES_AT_ONCE
    # Parameters and buffers that stay in float32 if the others go to a shorter type, because small steps would be
    # lost there.
    float32_names: ClassVar[tuple[str, ...]] = ()
    # The names of the attributes that decide the codes, and of those that must be stated again by a class that
    # changes the codes: how the codes depend on the input's unit, and the form in SAELens' format.
    code_attributes: ClassVar[tuple[str, ...]] = ("encode",)
    stated: ClassVar[tuple[tuple[str, ...], ...]] = (("change_unit",), ("to_saelens",))

    def __init__(self, ends: Ends | int, d_sae: int):
        super().__init__()
        self.ends = Ends.of(ends)
        self.d_in, self.d_out, self.d_sae = self.ends.input.width, self.ends.target.width, d_sae
        self._read, self._written = self.ends.read(d_sae), self.ends.written(d_sae)

    @property
    @abstractmethod
    def settings_type(self) -> type[AutoencoderSettings]:
        """The class of its settings, which the table of architectures names."""

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        """The vector that is subtracted from the input before encoding; None for none."""
        return None

    @property
    def deciding(self) -> slice:
        """The latents that decide which latents are on; the others follow them."""
        return slice(None)

    @property
    def code_weights(self) -> Float[Tensor, " d_sae"] | None:
        """The weight of each code in a sparsity term; None for one each."""
        return None

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"], sparse: bool = False) -> Encoding:
        """Compute the codes of x; if `sparse`, only the entries that may be non-zero, with the same values."""

    def forward(
        self, x: Float[Tensor, "batch d_in"], sparse: bool = False, targets: Float[Tensor, "batch d_out"] | None = None
    ) -> ForwardRecord:
        encoding, linear = self.encode(x, sparse), self.linear_path(x)
        decoded = self.decode(encoding.codes)
        return ForwardRecord(
            inputs=x,
            pre_activations=encoding.pre_activations,
            codes=encoding.codes,
            reconstruction=decoded if linear is None else decoded + linear,
            linear=linear,
            W_dec=self.W_dec,
            b_dec=self.b_dec,
            code_weights=self.code_weights,
            W_enc=self.W_enc,
            targets=targets,
            block_ends=tuple(latents.stop for latents, _ in self._read) or None,
            **encoding.extra,
        )

    def decode(self, codes: Codes) -> Float[Tensor, "batch d_out"]:
        """Compute codes @ W_dec + b_dec."""
        decoded = decode_within(codes, self.W_dec, self._written) if self._written else codes.decode(self.W_dec)
        return decoded + self.b_dec

    def linear_path(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"] | None:
        """Compute what is added to the decoded codes by a linear path from the input; None if there is no such path."""
        return None

    def check_decodes_alone(self) -> None:
        """Raise ValueError if a sample's codes alone do not determine its reconstruction."""

    def sample_scale(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch 1"] | None:
        """Return the factor by which each sample's codes @ W_dec enters its reconstruction; None for 1."""
        return None

    def encoder_product(
        self,
        x: Float[Tensor, "batch d_in"],
        select: Callable[[Tensor], Pattern] | None = None,
        narrow: Callable[[Pattern, Tensor], Tensor] | None = None,
    ) -> Codes:
        """Compute encoder_input(x) @ W_enc, everywhere or at selected entries; see `encoder_product`."""
        return encoder_product(x, self.centre, self.W_enc, select, narrow, self.product_entries, self._read)

    def encoder_input(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return x, minus b_dec if the settings say so."""
        return x if self.centre is None else x - self.centre

    def written_direction(self, wanted: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch d_out"]:
        """Return what a latent would have to write for targets: all of them that b_dec does not write already.

        If b_dec is no point from which an autoencoder's inputs are seen, they are taken whole, as its encoder does.
        """
        return wanted if self.ends.same and self.centre is None else wanted - self.b_dec

    def initialise(
        self,
        vectors: Callable[[], Float[Tensor, "vectors d_in"]],
        scale: Factor,
        targets: Callable[[], Float[Tensor, "vectors d_out"]] | None = None,
        target_scale: Factor = 1.0,
        seed: int | None = None,
        known: "Autoencoder | None" = None,
        mlp: Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, "batch d_out"]] | None = None,
    ) -> None:
        """Adapt fresh weights to data, if the architecture does so before the first step.

        Args:
            vectors: returns raw vectors of the training part.
            scale: the factor by which training multiplies them.
            targets: returns their raw targets; None if the vectors are their own targets.
            target_scale: the factor by which training multiplies the targets, if there are any.
            seed: of a decoder that starts from data; None leaves the decoder as it was drawn.
            known: a dictionary for raw vectors that passed `check_start`, from which the weights start; its unit
                changes.
            mlp: the MLP that makes raw targets of raw inputs, if the weights start from it.
        """

    @abstractmethod
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """Change the weights in place, from scaled inputs and targets to raw ones.

        Afterwards the autoencoder maps x to what it made of scale * x before, divided by `target_scale`. The same
        latents are on, and code_i * |W_dec_i| is the length of latent i's contribution in the new unit.

        Args:
            scale: the factor of the inputs, or one per dimension.
            target_scale: the factor of the targets; equal to `scale` if both ends have the same layout.
        """

    @abstractmethod
    def to_saelens(self) -> SAELensForm:
        """Return the autoencoder as SAELens' format holds it."""

    def saelens_tensors(self, *names: str) -> dict[str, Tensor]:
        """Return the weights and the named parameters, by their own names."""
        matrices: dict[str, Tensor] = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return matrices | {name: self.get_parameter(name) for name in names}

    @torch.no_grad()
    def load_saelens(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors of SAELens' format.

        Raises:
            ValueError: a tensor has values that the architecture cannot have.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(tensors[name])

    def check_algebra(self) -> None:
        """Raise ValueError if a class computes codes in its own way and inherits the algebra of another class's codes.

        Inherited, a change of unit and an export would be wrong without a message.
        """
        kinds = type(self).__mro__

        def nearest(*names: str) -> int:
            return min(i for i, kind in enumerate(kinds) if any(name in vars(kind) for name in names))

        own = nearest(*self.code_attributes)
        for names in self.stated:
            if nearest(*names) > own:
                raise ValueError(
                    f"{kinds[own].__name__} computes codes in its own way, but does not define {' or '.join(names)} "
                    "itself; define it in the class, because its codes are folded, evaluated and exported by it"
                )

    def deciding_map(self) -> DecidingMap | None:
        """Return the affine functions that decide which latents are on if latents compete for a fixed number of places
        per sample; None otherwise."""
        return None

    def latent_axis(self, name: str) -> int | None:
        """Return the axis of a parameter along which latents are counted; None if the parameter has no such axis."""
        return {"W_enc": 1, "b_dec": None, "W_skip": None, "W_skip_read": None, "W_skip_write": None}.get(name, 0)

    def _apply(self, fn, recurse=True):
        before = {name: getattr(self, name).data for name in self.float32_names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype in (torch.bfloat16, torch.float16):
                moved.data = tensor.to(moved.device, torch.float32)
        return self


class SparseAutoencoder(Autoencoder):
    """An autoencoder with random initial weights that gradient steps make sparse.

    W_enc is a parameter unless the settings tie it to W_dec.
    """

    stated = (("change_unit", "latents_compete"), ("to_saelens",))

    # Whether latents compete for a limited number of places per sample or per batch. If not, each latent is switched on
    # independently of the others, and may have a unit of its own.
    latents_compete: bool
    # The share of training that is done, which settings with a schedule read in training. The learner sets it before
    # each forward pass, so it is no part of the state.
    progress: float = 0.0

    def __init__(self, ends: Ends | int, settings: SparseAutoencoderSettings, generator: torch.Generator):
        ends = Ends.of(ends)
        super().__init__(ends, settings.width(ends.input.width))
        self.settings = settings
        rows = _first_rows(self.d_sae, ends, generator)
        for region in ends.unwritten(self.d_sae):
            rows[region] = 0.0
        rows *= settings.init_norm / rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        # Between two spaces the decoder's transpose is no encoder.
        if settings.encoder_init is EncoderInit.random or (not ends.same and not settings.tied):
            columns = torch.randn(self.d_sae, self.d_in, generator=generator) / self.d_in**0.5
            for latents, dimensions in self._read:
                columns[latents] *= (self.d_in / (dimensions.stop - dimensions.start)) ** 0.5
            self.W_enc = nn.Parameter(columns.T)
        elif settings.encoder_init is EncoderInit.transpose:
            self.W_enc = nn.Parameter(rows.clone().T)
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        if ends.skip and ends.skip_rank is None:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in))
        elif ends.skip_rank is not None:
            read = torch.randn(ends.skip_rank, self.d_in, generator=generator) / self.d_in**0.5
            self.W_skip_read = nn.Parameter(read)
            self.W_skip_write = nn.Parameter(torch.zeros(self.d_out, len(read)))
        self.mask_weights()
        if settings.align_encoder:
            self.align_encoder()

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # Python looks here only for names that are no plain attributes.
        if name == "W_enc" and self.settings.tied:
            return self.W_dec.T
        return super().__getattr__(name)

    @property
    def settings_type(self) -> type[SparseAutoencoderSettings]:
        return type(self.settings)

    def untie(self) -> None:
        """Give the encoder weights of its own, equal to the shared ones; change nothing if it has them already."""
        if self.settings.tied:
            self.settings = replace(self.settings, encoder_init=EncoderInit.transpose)
            self.W_enc = nn.Parameter(self.W_dec.detach().clone().T)

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        return self.b_dec if self.ends.same and self.settings.apply_b_dec_to_input else None

    @property
    def code_weights(self) -> Float[Tensor, " d_sae"] | None:
        if len(self.ends.target.parts) > 1 and self.ends.part_norm is PartNorm.sum:
            return self.part_norms().sum(1)
        return self.W_dec.norm(dim=1) if self.settings.decoder_norm is DecoderNorm.free else None

    def part_norms(self) -> Float[Tensor, "d_sae parts"]:
        """Compute the norm of each part of the decoder's rows."""
        return torch.stack([part.norm(dim=1) for part in self.ends.target.split(self.W_dec)], dim=1)

    def linear_path(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"] | None:
        if not self.ends.skip:
            return None
        if self.ends.skip_rank is None:
            return x @ self.W_skip.T
        return x @ self.W_skip_read.T @ self.W_skip_write.T

    @torch.no_grad()
    def initialise(
        self,
        vectors: Callable[[], Float[Tensor, "vectors d_in"]],
        scale: Factor,
        targets: Callable[[], Float[Tensor, "vectors d_out"]] | None = None,
        target_scale: Factor = 1.0,
        seed: int | None = None,
        known: Autoencoder | None = None,
        mlp: Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, "batch d_out"]] | None = None,
        centre: Float[Tensor, " d_out"] | None = None,
    ) -> None:
        """Set b_dec, the decoder and the encoder's biases by `b_dec_init`, `decoder_init` and `init_density` of `arch`.

        Between two layouts b_dec is no point of the inputs. The encoder's biases then start as if the inputs' own
        centre were subtracted: without this, the latents that point to it would be on for every sample.

        Args:
            vectors: returns raw vectors of the training part.
            scale: the factor by which training multiplies them.
            targets: returns their raw targets; None if the vectors are their own targets.
            target_scale: the factor by which training multiplies the targets, if there are any.
            seed: of a decoder that starts from data; None leaves the decoder as it was drawn.
            known: a dictionary for raw vectors whose first latents replace the new ones; its unit changes.
            mlp: the MLP that makes raw targets of raw inputs, if the decoder starts from it.
            centre: replaces the result of `arch.b_dec_init`.

        Raises:
            ValueError: too few vectors for the decoder, or a dictionary that `take_over` refuses.
        """
        first, settings = FirstVectors(vectors, scale, targets, target_scale, mlp), self.settings
        sample = first.inputs()
        if known is not None:
            assert isinstance(known, SparseAutoencoder), "check_start refuses others"
            # A batch_topk is stored as a jumprelu, and units of their own would let other latents win.
            known.latents_compete = self.latents_compete
            known.to(self.W_dec).change_unit(1 / scale, 1 / target_scale)
            centre = known.b_dec
        find_centre = {BiasInit.mean: lambda x: x.mean(0), BiasInit.geometric_median: geometric_median}.get(
            settings.b_dec_init
        )
        if centre is not None:
            self.b_dec.copy_(centre)
        elif find_centre is not None:
            self.b_dec.copy_(find_centre(first.targets()))
        if seed is not None:
            self._start_decoder(first, seed)
        if not self.ends.same and find_centre is not None:
            self.raise_pre_activations(-find_centre(sample) @ self.W_enc)
        if settings.bias_density is not None:
            self.switch_on(self.encoder_input(sample), settings.bias_density)
        if seed is not None and settings.decoder_init.from_data:
            self._shrink_codes(first)
        if known is not None:
            take_over(self, known)
            if settings.align_encoder:
                self.align_encoder()

    def _shrink_codes(self, first: FirstVectors) -> None:
        """Divide all codes by one number if the first reconstructions are too long.

        Rows that start from data are alike, so those that are on together add up to several times the target.
        """
        settings = self.settings
        if settings.tied or settings.align_encoder:
            return
        inputs, wanted = first.inputs(SCALED_BY)[:SCALED_BY], first.targets(SCALED_BY)[:SCALED_BY] - self.b_dec
        for encode in self.stages:
            decoded = encode(inputs, True).codes.decode(self.W_dec)
            # The factor of least squares.
            factor = (decoded * wanted).sum() / decoded.square().sum().clamp_min(1e-30)
            if 0 < factor < 1:
                self.W_enc.mul_(factor)
                self.multiply_pre_activations(factor.expand(self.d_sae))

    @property
    def stages(self) -> list[Callable[[Tensor, bool], Encoding]]:
        """The encoders by whose codes a start from data is scaled, one after the other."""
        return [self.encode]

    def _start_decoder(self, first: FirstVectors, seed: int) -> None:
        """Set the decoder by `arch.decoder_init`, and an encoder that starts with it."""
        settings = self.settings
        found = first_decoder(settings, first, self.W_enc, self.W_dec, self.b_dec, seed)
        if found is None:
            return
        latents = torch.arange(self.d_sae, device=found.rows.device)
        unit = torch.nn.functional.normalize(_within(found.rows, latents, self._written), dim=1, eps=1e-8)
        self.W_dec.copy_(settings.init_norm * unit)
        if settings.encoder_init is EncoderInit.transpose and self.ends.same and unit.any():
            self.W_enc.copy_(self.W_dec.T)
        if settings.encoder_init is EncoderInit.transpose and found.read is not None:
            norms = self.W_enc.norm(dim=0)
            directions = _within(found.read.T, latents, self._read).T
            read = norms * torch.nn.functional.normalize(directions, dim=0, eps=1e-8)
            self.W_enc.copy_(torch.where(read.any(0), read, self.W_enc))
        self.mask_weights()
        if settings.align_encoder:
            self.align_encoder()

    @torch.no_grad()
    def set_decoder(self, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]) -> None:
        """Replace the decoder; every input keeps its codes.

        If b_dec is subtracted from the input, the encoder's biases compensate for its change.
        """
        if self.centre is not None:
            self.move_inputs(b_dec.to(self.b_dec) - self.b_dec)
        self.W_dec.copy_(W_dec)
        self.b_dec.copy_(b_dec)

    @torch.no_grad()
    def move_inputs(self, by: Float[Tensor, " d_in"]) -> None:
        """Add a vector to every input before encoding, by way of the biases.

        Raises:
            ValueError: biases cannot do this.
        """
        self.raise_pre_activations(by @ self.W_enc)

    @torch.no_grad()
    def raise_pre_activations(self, by: Float[Tensor, " d_sae"]) -> None:
        """Add a vector to the encoder's product with every input, by way of the biases."""
        self.get_parameter("b_enc").add_(by)

    def switch_on(self, inputs: Float[Tensor, "vectors d_in"], density: float) -> None:
        """Set the biases by which each latent is on for a share `density` of vectors.

        Args:
            inputs: the vectors, as `encoder_input` returns them.
            density: the share.
        """
        for latents, products in levels(inputs, self.W_enc, density):
            self.switch_on_above(latents, products)

    @torch.no_grad()
    def switch_on_above(self, latents: slice, products: Float[Tensor, " latents"]) -> None:
        """Set biases so that a latent is on if its encoder product with an input exceeds the given number."""
        self.get_parameter("b_enc")[latents] = -products

    @torch.no_grad()
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """See `Autoencoder.change_unit`; tied weights become untied.

        If each latent is switched on independently, the decoder's rows become unit vectors, so that a code alone is the
        length of its contribution. If latents compete, only a factor common to all keeps the winners: every code is
        divided by one factor and the rows stay as they were, unit vectors under `decoder_norm: unit`, if the targets
        have a single factor.
        """
        self.untie()
        # With x' = scale * x and y' = target_scale * y, the code's unit may be chosen per latent: c_i = unit_i * c'_i.
        # Encoder columns then carry scale * unit_i and decoder rows 1 / (target_scale * unit_i). With one factor s for
        # all, unit_i = norm_i / s leaves norm_i and 1 / norm_i; s is taken from the targets if there are several.
        common = float(target_scale[0]) if isinstance(target_scale, Tensor) else target_scale
        self.W_dec.div_(target_scale / common)
        norm = self.W_dec.new_ones(self.d_sae) if self.latents_compete else _row_norms(self.W_dec)
        relative = scale / common
        self.W_enc.mul_(norm)
        self.W_enc.mul_(relative[:, None] if isinstance(relative, Tensor) else relative)
        self.W_dec.div_(norm[:, None])
        self.b_dec.div_(target_scale)
        for name, parameter in self.named_parameters():
            if name in ("W_skip", "W_skip_read"):
                parameter.mul_(scale)
            if name in ("W_skip", "W_skip_write"):
                parameter.div_(target_scale[:, None] if isinstance(target_scale, Tensor) else target_scale)
        self.multiply_pre_activations(norm / common)

    def multiply_pre_activations(self, unit: Float[Tensor, " d_sae"]) -> None:
        """Multiply everything that is added to, or compared with, pre-activations; the caller changes W_enc.

        relu(unit * a) = unit * relu(a), and a step at a threshold stays where it is if both sides are multiplied.
        """
        self.get_parameter("b_enc").mul_(unit)

    @torch.no_grad()
    def resample(
        self,
        latents: Int[Tensor, " latents"],
        alive: Bool[Tensor, " d_sae"],
        read: Float[Tensor, "latents d_in"],
        written: Float[Tensor, "latents d_out"],
    ) -> None:
        """Give latents new weights (Bricken et al. 2023, appendix "Neuron Resampling").

        A decoder row becomes the direction that the latent should write, with the mean norm of the live latents' rows;
        an encoder column becomes the direction that it should read, at a fifth of the mean norm of the live latents'
        columns; biases become zero. If latents compete, the encoder column has the whole mean norm: at a fifth it would
        never win a place.

        Args:
            latents: indices.
            alive: all other latents.
            read, written: unit vectors.
        """
        encoder_norm = self.W_enc.norm(dim=0)[alive].mean() if alive.any() else torch.ones(())
        decoder_norm = self.W_dec.norm(dim=1)[alive].mean() if alive.any() else torch.ones(())
        share = 1.0 if self.latents_compete else RESAMPLED_SHARE
        read, written = _within(read, latents, self._read), _within(written, latents, self._written)
        for name, parameter in self.named_parameters():
            if name == "W_dec":
                parameter[latents] = written * decoder_norm
            elif name == "W_enc":
                parameter[:, latents] = read.T * encoder_norm * share
            elif (axis := self.latent_axis(name)) is not None:
                parameter.index_fill_(axis, latents, 0.0)

    @torch.no_grad()
    def copy_latents(self, other: Autoencoder, latents: Int[Tensor, " latents"]) -> None:
        """Take over the weights of some latents from another autoencoder of the same kind that has them."""
        for name, parameter in self.named_parameters():
            if (axis := self.latent_axis(name)) is not None:
                parameter.index_copy_(axis, latents, other.get_parameter(name).index_select(axis, latents))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set weights between latents and parts that they do not read or write to zero, as after each step."""
        for name, region in self._masked():
            self.get_parameter(name)[region] = 0.0

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of these weights to zero, so that no norm of gradients and no moment knows them."""
        for name, region in self._masked():
            gradient = self.get_parameter(name).grad
            if gradient is not None:
                gradient[region] = 0.0

    def _masked(self) -> Iterator[tuple[str, tuple[slice, slice]]]:
        """Yield the names of weights, and where they are zero."""
        ends = self.ends
        yield from (("W_dec", region) for region in ends.unwritten(self.d_sae))
        if not self.settings.tied:
            yield from (("W_enc", (dimensions, latents)) for latents, dimensions in ends.unread(self.d_sae))
        if ends.skip:
            yield from (("W_skip", region) for region in ends.unlinked())

    @property
    def has_unit_columns(self) -> bool:
        """True if `normalise_decoder` gives the encoder's columns unit norm, too."""
        return False

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm, as `decoder_norm: unit` requires after each step; frozen weights stay."""
        if self.W_dec.requires_grad:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def align_encoder(self) -> None:
        """Move each encoder column to the nearest one whose product with its decoder row is 1, as
        `arch.align_encoder` requires after each step.

        w becomes w + (1 - w.d) d / |d|^2. The other map without a hyper-parameter, w / (w.d), is not used: it has no
        bound if w is nearly orthogonal to d, and it turns w around if the product is negative.
        """
        rows = self.W_dec
        missing = 1 - (self.W_enc.T * rows).sum(1)
        self.W_enc.T.addcmul_((missing / rows.square().sum(1).clamp_min(1e-16))[:, None], rows)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove the part of the decoder's gradient that would only change the norms of rows, which are fixed."""
        grad = self.W_dec.grad
        assert grad is not None
        grad.addcmul_((grad * self.W_dec).sum(dim=1, keepdim=True), self.W_dec, value=-1.0)


def _first_rows(d_sae: int, ends: Ends, generator: torch.Generator) -> Float[Tensor, "d_sae d_out"]:
    """Draw decoder rows of any norm; parts of equal width share one draw, as crosscoders start."""
    widths = ends.target.widths
    if len(set(widths)) > 1:
        return torch.randn(d_sae, ends.target.width, generator=generator)
    return torch.randn(d_sae, widths[0], generator=generator).repeat(1, len(widths))


def _within(
    vectors: Float[Tensor, "latents d"], latents: Int[Tensor, " latents"], regions: Sequence[Region]
) -> Float[Tensor, "latents d"]:
    """Return unit vectors of the parts of vectors that their latents reach; without regions, the vectors."""
    if not regions:
        return vectors
    reached = torch.zeros_like(vectors)
    for block, dimensions in regions:
        own = (latents >= block.start) & (latents < block.stop)
        reached[:, dimensions] += vectors[:, dimensions] * own[:, None]
    return nn.functional.normalize(reached, dim=1, eps=1e-8)


def _row_norms(W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
    """Return the norms of the rows, 1 for a row of zeros: that latent contributes nothing at any length."""
    norms = W_dec.norm(dim=1)
    return torch.where(norms > 0, norms, 1.0)
