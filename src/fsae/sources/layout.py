"""The layout of a run: the sites that make the input of its dictionaries, and those that make the target."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fsae.autoencoders.layout import Ends, Layout, PartNorm
from fsae.language_models.sites import Site, SiteName
from fsae.ranges import Ranged, between


class Sites(NamedTuple):
    """The sites of a dictionary's input and target, each in its order.

    Attributes:
        input: whose vectors are encoded.
        target: whose vectors are reconstructed; the same ones for an autoencoder and a crosscoder.
    """

    input: tuple[Site, ...]
    target: tuple[Site, ...]

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


@dataclass(frozen=True, kw_only=True)
class LayoutSettings(Ranged, group="layout"):
    """Settings of what a dictionary reads and what it writes.

    Attributes:
        target: the place of the vectors that it reconstructs, at the layer of `site`; null for what it reads.
        layers: the layers at whose `site.name` a crosscoder reads and writes; empty for the one of `site.layer`.
        skip: add a linear path from the input to the reconstruction.
        skip_rank: the rank of this path; null for any.
        part_norm: the norm of the decoder rows of a crosscoder, which weighs codes in the sparsity terms.
    """

    target: SiteName | None = None
    layers: list[int] = field(
        default_factory=list, metadata=between(least=0, most=10_000, meaning="a block, counted from 0")
    )
    skip: bool = False
    skip_rank: int | None = field(default=None, metadata=between(least=1, most=2**20, meaning="a rank"))
    part_norm: PartNorm = PartNorm.sum

    def __post_init__(self):
        super().__post_init__()
        if self.skip_rank is not None and not self.skip:
            raise ValueError("layout.skip_rank is set, but layout.skip is false; choose layout=skip_transcoder")
        if self.target is not None and self.layers:
            raise ValueError(
                "layout.target is one place and layout.layers are several; a crosscoder has layout.target=null"
            )
        if self.skip and self.target is None:
            raise ValueError(
                "layout.skip adds a path from the input to another target, and layout.target is null; choose "
                "layout=skip_transcoder"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layout.layers names a layer twice: {self.layers}; leave the second one out")

    @property
    def plain(self) -> bool:
        """True if the dictionary is an autoencoder of one site."""
        return self.target is None and not self.several and not self.skip

    @property
    def several(self) -> bool:
        """True if the dictionary reads and writes several parts."""
        return len(self.layers) > 1

    def sites(self, site: Site) -> Sites:
        """Return the sites that a run at `site` reads and writes.

        Raises:
            ValueError: the target is the input, or lies before it in a forward pass.
        """
        if self.layers:
            several = tuple(replace(site, layer=layer) for layer in self.layers)
            return Sites(several, several)
        if self.target is None:
            return Sites((site,), (site,))
        target = Site(name=self.target, layer=site.layer)
        if target.place <= site.place:
            raise ValueError(
                f"layout.target is {self.target.value}, which a forward pass does not reach after {site}; choose a "
                "later place, or another site, as in site=mlp_in layout.target=mlp_out"
            )
        return Sites((site,), (target,))

    def ends(self, input_layout: Layout, target_layout: Layout) -> Ends:
        """Return the ends of a dictionary between these layouts."""
        return Ends(
            input=input_layout,
            target=target_layout,
            skip=self.skip,
            skip_rank=self.skip_rank,
            part_norm=self.part_norm,
        )


def layout_of(sites: Sequence[Site], widths: Sequence[int]) -> Layout:
    """Return the layout of vectors of these sites, side by side."""
    return Layout(tuple((str(site), width) for site, width in zip(sites, widths, strict=True)))
