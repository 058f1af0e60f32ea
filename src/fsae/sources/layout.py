"""The layout of a run: the sites that make the input of its dictionaries, and those that make the target."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from fsae.autoencoders.layout import (
    Block,
    End,
    Ends,
    Layout,
    PartNorm,
    blocks_across_layers,
    blocks_per_layer,
    exclusive_blocks,
)
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import OtherModelSite, Site, SiteName
from fsae.ranges import Ranged, between

# The need of evaluations of the two autoencoders of a pair together; all others measure each of them by itself.
PAIR = "pair"
# The need of evaluations that put what they make of a site's vectors back there.
ONE_SITE = "one_site"
# The need of evaluations that compare the parts of a dictionary.
SEVERAL_PARTS = "several_parts"


class Sites(NamedTuple):
    """The sites of a dictionary's input and target, each in its order.

    Attributes:
        input: whose vectors are encoded.
        target: whose vectors are reconstructed; the same ones for an autoencoder and a crosscoder.
    """

    input: tuple[Site, ...]
    target: tuple[Site, ...]

    def at(self, end: End) -> "Sites":
        """Return the sites of an autoencoder of one end."""
        sites = self.input if end is End.input else self.target
        return Sites(sites, sites)

    @property
    def all(self) -> tuple[Site, ...]:
        """Every site once."""
        return tuple(dict.fromkeys(self.input + self.target))

    @property
    def plain(self) -> bool:
        """True if one site is read and reconstructed."""
        return self.input == self.target and len(self.input) == 1

    def __str__(self) -> str:
        read, written = (" + ".join(map(str, sites)) for sites in self)
        return read if self.input == self.target else f"{read} -> {written}"


class Latents(Enum):
    """The parts that a latent reads and writes, if the dictionary has several layers.

    `shared` latents read and write all of them, as in a crosscoder. The others are divided equally over the layers:
    with `per_layer` a latent reads and writes its own layer, and with `cross_layer` it reads its own layer, and writes
    this one and all later ones.
    """

    shared = "shared"
    per_layer = "per_layer"
    cross_layer = "cross_layer"


@dataclass(frozen=True, kw_only=True)
class LayoutSettings(Ranged, group="layout"):
    """Settings of what a dictionary reads and what it writes.

    Attributes:
        target: the place of the vectors that it reconstructs, at the layers of the input; null for what it reads.
        layers: the layers at whose `site.name` a dictionary of several layers reads; empty for the one of `site.layer`.
        model: another language model with the same tokens, whose activations at the same sites a crosscoder reads and
            writes, too; null for none.
        latents: which layers each latent reads and writes.
        exclusive: share of the latents of a crosscoder that read and write the first part alone, and so for each part;
            the others read and write all parts (DFC, arXiv 2602.11729).
        pair: train one autoencoder of the input and one of the target, the two members of a population, instead of a
            dictionary between them.
        skip: add a linear path from the input to the reconstruction; with latents of layers, within each layer.
        skip_rank: the rank of this path; null for any.
        part_norm: the norm of decoder rows of several parts, which weighs codes in the sparsity terms.
    """

    target: SiteName | None = None
    layers: list[int] = field(
        default_factory=list, metadata=between(least=0, most=10_000, meaning="a block, counted from 0")
    )
    model: ModelSettings | None = None
    latents: Latents = Latents.shared
    exclusive: float = field(default=0.0, metadata=between(least=0, below=1, meaning="a share of the latents"))
    pair: bool = False
    skip: bool = False
    skip_rank: int | None = field(default=None, metadata=between(least=1, most=2**20, meaning="a rank"))
    part_norm: PartNorm = PartNorm.sum

    def __post_init__(self):
        super().__post_init__()
        divided = self.several or self.exclusive > 0
        if self.pair and (self.target is not SiteName.mlp_out or self.skip or divided):
            raise ValueError(
                "layout.pair is for two autoencoders around one MLP, with layout.target=mlp_out, one layer, and "
                "without a skip path or exclusive latents; choose layout=jacobian_pair site.layer=5"
            )
        if self.skip_rank is not None and not self.skip:
            raise ValueError("layout.skip_rank is set, but layout.skip is false; choose layout=skip_transcoder")
        if self.target is not None and self.layers and self.latents is Latents.shared:
            raise ValueError(
                "layout.target is one place and layout.layers are several; a crosscoder has layout.target=null, and "
                "transcoders of several layers are layout=per_layer_transcoder or layout=cross_layer_transcoder"
            )
        if self.latents is not Latents.shared:
            self._check_latents_of_layers()
        if self.model is not None and (self.target is not None or self.latents is not Latents.shared):
            raise ValueError("layout.model is the second model of a crosscoder; choose layout=crosscoder")
        if self.skip and self.target is None:
            raise ValueError(
                "layout.skip adds a path from the input to another target, and layout.target is null; choose "
                "layout=skip_transcoder"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layout.layers names a layer twice: {self.layers}; leave the second one out")

    def _check_latents_of_layers(self) -> None:
        latents = f"layout.latents is {self.latents.value}"
        if self.exclusive > 0:
            raise ValueError(
                f"{latents}, so every latent has a layer, and layout.exclusive is {self.exclusive:g}; leave it out, or "
                "choose layout=crosscoder"
            )
        if self.skip_rank is not None:
            raise ValueError(
                f"{latents}, and a linear path of low rank would join the layers; set layout.skip_rank=null"
            )
        if self.layers != sorted(self.layers):
            raise ValueError(f"{latents}, and layout.layers are {self.layers}; name them in their order")

    @property
    def plain(self) -> bool:
        """True if the dictionary is an autoencoder of one site."""
        return self.target is None and not self.several and not self.skip

    @property
    def several(self) -> bool:
        """True if the dictionary reads several parts."""
        return len(self.layers) > 1 or self.model is not None

    @property
    def provides(self) -> frozenset[str]:
        """The needs of evaluations that these dictionaries meet."""
        if self.pair:
            return frozenset({PAIR})
        if self.plain:
            return frozenset({ONE_SITE})
        return frozenset({SEVERAL_PARTS} if self.several and self.target is None else ())

    def sites(self, site: Site) -> Sites:
        """Return the sites that a run at `site` reads and writes.

        Raises:
            ValueError: the target is the input, or lies before it in a forward pass.
        """
        read = tuple(replace(site, layer=layer) for layer in self.layers) or (site,)
        if (model := self.model) is not None:
            read += tuple(
                OtherModelSite(name=each.name, layer=each.layer, head=each.head, model=model) for each in read
            )
        if self.target is None:
            return Sites(read, read)
        if self.pair and site.name is not SiteName.mlp_in:
            raise ValueError(f"layout.pair is for two autoencoders around an MLP, and site is {site}; set site=mlp_in")
        written = tuple(Site(name=self.target, layer=each.layer) for each in read)
        if written[0].place <= read[0].place:
            raise ValueError(
                f"layout.target is {self.target.value}, which a forward pass does not reach after {read[0]}; choose a "
                "later place, or another site, as in site=mlp_in layout.target=mlp_out"
            )
        return Sites(read, written)

    def around_mlp(self, site: Site) -> bool:
        """Return whether a run at `site` maps what one MLP reads to what it writes."""
        whole = not self.pair and not self.several
        return whole and site.name is SiteName.mlp_in and self.target is SiteName.mlp_out

    @property
    def read_by(self) -> tuple[End | None, ...]:
        """The end that each member of a pair reconstructs; a single None if members are between both ends."""
        return (End.input, End.target) if self.pair else (None,)

    def ends(self, input_layout: Layout, target_layout: Layout, end: End | None = None) -> Ends:
        """Return the ends of a dictionary between these layouts, or of the autoencoder of one end of a pair.

        Raises:
            ValueError: `exclusive` leaves no latent for all parts, or there is one part only.
        """
        if end is not None:
            own = input_layout if end is End.input else target_layout
            return Ends(input=own, target=own)
        return Ends(
            input=input_layout,
            target=target_layout,
            skip=self.skip,
            skip_rank=self.skip_rank,
            part_norm=self.part_norm,
            blocks=self._blocks(len(input_layout.parts)),
        )

    def _blocks(self, parts: int) -> tuple[Block, ...]:
        if self.exclusive > 0:
            if parts == 1 or parts * self.exclusive >= 1:
                raise ValueError(
                    f"layout.exclusive is {self.exclusive:g}, and the dictionary has {parts} part{'s' * (parts > 1)}; "
                    "choose layout=crosscoder with several parts, and a share that leaves latents for all of them"
                )
            return exclusive_blocks(parts, self.exclusive)
        if parts == 1 or self.latents is Latents.shared:
            return ()
        return blocks_per_layer(parts) if self.latents is Latents.per_layer else blocks_across_layers(parts)


def layout_of(sites: Sequence[Site], widths: Sequence[int]) -> Layout:
    """Return the layout of vectors of these sites, side by side."""
    return Layout(tuple((str(site), width) for site, width in zip(sites, widths, strict=True)))
