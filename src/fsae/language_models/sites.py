"""Sites: the places of a transformer block where activations are read and reconstructions are put back."""

from dataclasses import dataclass
from enum import Enum


class SiteName(Enum):
    """Where in a block; the words are TransformerLens' own."""

    resid_pre = "resid_pre"
    resid_mid = "resid_mid"
    resid_post = "resid_post"
    mlp_out = "mlp_out"
    attn_out = "attn_out"
    attn_z = "attn_z"


@dataclass(frozen=True, kw_only=True)
class Site:
    """One site: a name and the block it is in (counted from 0). It is a config group of its own."""

    name: SiteName
    layer: int

    def __post_init__(self):
        if self.layer < 0:
            raise ValueError(f"site.layer is {self.layer}; layers are counted from 0")

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook, as SAELens stores it in `hook_name`."""
        hook = "attn.hook_z" if self.name is SiteName.attn_z else f"hook_{self.name.value}"
        return f"blocks.{self.layer}.{hook}"

    def __str__(self) -> str:
        return f"{self.name.value}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `str` would turn into this text.

        Raises:
            ValueError: there is none.
        """
        name, _, layer = text.partition(".")
        if name not in SiteName.__members__ or not layer.isdecimal():
            raise ValueError(
                f"{text!r} is no site; write a name and a layer, like mlp_out.5: {', '.join(SiteName.__members__)}"
            )
        return cls(name=SiteName(name), layer=int(layer))
