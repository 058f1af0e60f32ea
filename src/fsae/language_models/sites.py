"""Sites: the places of a transformer block where activations are read and replaced."""

import re
from dataclasses import dataclass, field, replace
from enum import Enum

from fsae.language_models.settings import ModelSettings, OtherModelSettings
from fsae.ranges import Ranged, between


class SiteName(Enum):
    """The places in a block, by TransformerLens' names."""

    resid_pre = "resid_pre"
    resid_mid = "resid_mid"
    resid_post = "resid_post"
    mlp_out = "mlp_out"
    attn_out = "attn_out"
    attn_z = "attn_z"
    mlp_in = "mlp_in"
    attn_in = "attn_in"
    mlp_normalized = "mlp_normalized"
    attn_normalized = "attn_normalized"


# The Bridge's names of a block's hooks, for sites that are the same in every family.
_BRIDGE_HOOKS = {
    SiteName.resid_pre: "hook_in",
    SiteName.resid_post: "hook_out",
    SiteName.attn_z: "attn.o.hook_in",
}
# The sites of a block in the order in which a forward pass reaches them.
_ORDER = [
    SiteName.resid_pre,
    SiteName.attn_normalized,
    SiteName.attn_in,
    SiteName.attn_z,
    SiteName.attn_out,
    SiteName.resid_mid,
    SiteName.mlp_normalized,
    SiteName.mlp_in,
    SiteName.mlp_out,
    SiteName.resid_post,
]
# Hooks whose name is not hook_ and the site's own.
_HOOKS = {
    SiteName.attn_z: "attn.hook_z",
    SiteName.mlp_in: "mlp.hook_in",
    SiteName.attn_in: "attn.hook_in",
    SiteName.mlp_normalized: "ln2.hook_normalized",
    SiteName.attn_normalized: "ln1.hook_normalized",
}
# What a sublayer reads, and what it writes.
_WRITTEN = {SiteName.mlp_in: SiteName.mlp_out, SiteName.attn_in: SiteName.attn_out}
# What a norm makes of the stream before its weight and its bias, and after them.
_WEIGHTED = {SiteName.mlp_normalized: SiteName.mlp_in, SiteName.attn_normalized: SiteName.attn_in}
# Copies of the stream that a sublayer alone reads, before its norm: they have the vectors of these sites, but what
# replaces them does not reach the stream.
_COPIES = {"hook_mlp_in": SiteName.resid_mid, "hook_attn_in": SiteName.resid_pre}
# These hooks lie before the norm that some families (Gemma 2, OLMo 2) apply after a sublayer; our sites lie after it.
_BEFORE_NORM = {"mlp.hook_out": SiteName.mlp_out, "attn.hook_out": SiteName.attn_out}


@dataclass(frozen=True, kw_only=True)
class Site(Ranged, group="site"):
    """A site: a name and the block it is in. It is a config group of its own.

    Attributes:
        layer: the block, counted from 0.
        head: of attn_z only: the attention head whose outputs alone are meant, counted from 0; null for all heads.

    Raises:
        ValueError: a number out of range, or a head at a site that has none.
    """

    name: SiteName
    layer: int = field(metadata=between(least=0, most=10_000, meaning="a block, counted from 0"))
    head: int | None = field(default=None, metadata=between(least=0, most=10_000, meaning="a head, counted from 0"))

    def __post_init__(self):
        super().__post_init__()
        if self.head is not None and self.name is not SiteName.attn_z:
            raise ValueError(
                f"site.head is {self.head}, but only attn_z has heads, and site.name is {self.name.value}; leave "
                "site.head out, or set site=attn_z"
            )

    @property
    def of_all_heads(self) -> "Site":
        """Return the site of all heads together, for the site of one head."""
        return replace(self, head=None)

    @property
    def within(self) -> "Site":
        """Return the site as its own model knows it."""
        return self

    def model_in(self, run: ModelSettings) -> ModelSettings:
        """Return the settings of the model that the site is of, in a run whose own model is `run`."""
        return run

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook, as SAELens stores it in `hook_name`."""
        return f"blocks.{self.layer}.{_HOOKS.get(self.name, f'hook_{self.name.value}')}"

    @property
    def overrides(self) -> list[str]:
        """Return the overrides of a command line that choose the site."""
        of_head = [] if self.head is None else [f"site.head={self.head}"]
        return [f"site={self.name.value}", f"site.layer={self.layer}", *of_head]

    @property
    def of_attention(self) -> bool:
        """Return whether the vectors are what all heads of a layer's attention compute, alone."""
        return self.head is None and self.name in (SiteName.attn_z, SiteName.attn_out)

    @property
    def written(self) -> "Site | None":
        """Return what attention or the MLP writes from its input, if this is the input of one."""
        return replace(self, name=_WRITTEN[self.name]) if self.name in _WRITTEN else None

    @property
    def weighted(self) -> "Site | None":
        """Return what a norm's weight and bias make of these vectors, if they are normalised ones."""
        return replace(self, name=_WEIGHTED[self.name]) if self.name in _WEIGHTED else None

    @property
    def place(self) -> tuple[int, int]:
        """The place of the site in a forward pass: sites that are reached later have a greater one."""
        return self.layer, _ORDER.index(self.name)

    @classmethod
    def of_hook(cls, hook_name: str, head: int | None = None, only_read: bool = False) -> "Site":
        """Return the site with this hook, by TransformerLens' older names or its Bridge's, and of this head alone.

        Args:
            hook_name: the hook's name.
            head: of attn_z; None for all.
            only_read: whether nothing is replaced at the site, so that any site with the same vectors will do.

        Raises:
            ValueError: no site has this hook, or only some families' sites do.
        """
        if (found := re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)) is not None:
            for name in SiteName:
                site = cls(name=name, layer=int(found[1]))
                if hook_name == site.hook_name or found[2] == _BRIDGE_HOOKS.get(name):
                    return replace(site, head=head)
            if (name := _COPIES.get(found[2])) is not None:
                copied = cls(name=name, layer=int(found[1]))
                if only_read:
                    return copied
                raise ValueError(
                    f"the hook {hook_name!r} is a copy of the stream that one sublayer reads; {copied} has the same "
                    f"vectors, but its edits reach the whole stream: if that is meant, write {copied.hook_name!r} "
                    "instead"
                )
            if (name := _BEFORE_NORM.get(found[2])) is not None:
                meant = cls(name=name, layer=int(found[1]))
                raise ValueError(
                    f"the hook {hook_name!r} lies before the norm that some models apply after this sublayer, and "
                    f"{name.value} lies after it; if the model has no such norm they are the same: write "
                    f"{meant.hook_name!r} instead"
                )
        raise ValueError(
            f"no site has the hook {hook_name!r}; the sites are "
            + ", ".join(f"{name.value} ({cls(name=name, layer=0).hook_name})" for name in SiteName)
        )

    def __str__(self) -> str:
        return f"{self.name.value}.{self.layer}" + ("" if self.head is None else f".{self.head}")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Return the site that `str` turns into this text.

        Raises:
            ValueError: there is no such site.
        """
        found = re.fullmatch(r"(\w+)\.([0-9]+)(?:\.([0-9]+))?", text)
        if found is None or found[1] not in SiteName.__members__:
            raise ValueError(
                f"{text!r} is no site; write a name and a layer, like mlp_out.5, and for one head of attn_z the head, "
                f"like attn_z.5.2: {', '.join(SiteName.__members__)}"
            )
        head = None if found[3] is None else int(found[3])
        return cls(name=SiteName(found[1]), layer=int(found[2]), head=head)


@dataclass(frozen=True, kw_only=True)
class OtherModelSite(Site, group="site"):
    """A site of another language model than the run's own one.

    Both models run in the same way: on one device, in one type, over as many rows at a time.

    Attributes:
        model: its settings.
    """

    model: ModelSettings

    @property
    def within(self) -> Site:
        return Site(name=self.name, layer=self.layer, head=self.head)

    def model_in(self, run: ModelSettings) -> ModelSettings:
        other = OtherModelSettings.of(self.model)
        return replace(other, dtype=run.dtype, device=run.device, batch_size=run.batch_size)

    def __str__(self) -> str:
        return f"{self.within}_of_{self.model.name}"
