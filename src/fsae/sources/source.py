"""A source of training vectors: the only interface between vectors and training or evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.layout import End, Layout
from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.ranges import SEED, Ranged
from fsae.sources.documents import DatasetSettings
from fsae.sources.layout import LayoutSettings, Sites
from fsae.sources.room import Room
from fsae.sources.shard import Part
from fsae.sources.supply import Supply
from fsae.sources.tokens import TextRows
from fsae.sparse.codes import Codes

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel


class Partners(NamedTuple):
    """The sample before each one: of a text, that of the token before it in the same document.

    Attributes:
        inputs: of the partners; any vector if there is none.
        there: which samples have a partner.
    """

    inputs: Float[Tensor, "batch d_in"]
    there: Bool[Tensor, " batch"]


class Batch(NamedTuple):
    """Inputs and their targets; for an autoencoder both are the same tensor, unless its inputs are noisy.

    Attributes:
        partners: of the samples, if they were asked for.
    """

    inputs: Float[Tensor, "batch d_in"]
    targets: Float[Tensor, "batch d_out"]
    partners: Partners | None = None


class HeldOutText(Protocol):
    """Held-out text and the language model that reads it."""

    @property
    def model(self) -> "TransformerLensModel":
        """The language model, opened on first use."""
        ...

    def model_at(self, site: Site) -> "TransformerLensModel":
        """Return the language model that a site is of: `model`, or the other one of a crosscoder over two models."""
        ...

    @property
    def site(self) -> Site:
        """The site whose activations are the source's inputs; the first one if there are several."""
        ...

    @property
    def sites(self) -> Sites:
        """The sites of the inputs and of the targets."""
        ...

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        ...

    @property
    def reopen_models(self) -> "Callable[[], Callable[[Site], TransformerLensModel]]":
        """Returns `model_at` of language models that are opened again, in another process."""
        ...

    @property
    def rows_at_once(self) -> int:
        """Rows per forward pass of the language model."""
        ...

    @property
    def norm_limit(self) -> float | None:
        """The norm above which an activation at `site` is left out of training and evaluation; None for no limit."""
        ...

    @property
    def norm_limits(self) -> list[float] | None:
        """The limits at all sites, inputs first: a row is left out if it is beyond one; None for no limits."""
        ...

    @property
    def input_limits(self) -> list[float] | None:
        """The limits at the sites of the inputs; None for no limits."""
        ...

    @property
    def input_layout(self) -> Layout:
        """The parts of the inputs."""
        ...

    @property
    def prepends_bos(self) -> bool:
        """True if each row begins with a BOS."""
        ...

    @property
    def origin(self) -> dict[str, Any]:
        """Everything besides text and sites that decides activations: the models' identities and their dtype."""
        ...

    @property
    def kept_in(self) -> Room | None:
        """The folder of all activations, where those of an evaluation's own texts are kept, too; None for none."""
        ...

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """Return the first rows that have `count` tokens together (fewer if there are no more), and a mask of the
        positions that count.

        Raises:
            ValueError: the held-out part is shorter than one row.
        """
        ...

    def rows(self, part: Part, count: int, heartbeat: Callable[[], None] = ...) -> TextRows:
        """Return the first rows of a part that have `count` tokens together, or all its rows.

        Raises:
            ValueError: the part is shorter than one row.
        """
        ...


class KnownFeatures(Protocol):
    """The ground truth of synthetic vectors."""

    @property
    def features(self) -> Float[Tensor, "features d_in"]:
        """The directions of the features."""
        ...

    def held_out_codes(self, count: int) -> Iterator[Codes]:
        """Yield the coefficients, (some, features), of the samples of `held_out`."""
        ...

    def vectors(self, codes: Codes) -> Float[Tensor, "some d_in"]:
        """Return the samples with these coefficients."""
        ...


class FillableStore(Protocol):
    """An activation store that can be filled without training."""

    def fill_store(self) -> dict[str, float]:
        """Harvest the shards that the store lacks; return `harvest/...` numbers."""
        ...


class Source(ABC):
    """A resumable stream of shuffled training vectors, and a held-out part.

    Attributes:
        d_in: width of the inputs.
        unit: the plural noun for vectors on axes and in progress ("tokens", "samples").
        device: where batches are.
        text: held-out text with its language model, if vectors are activations of one.
        truth: the features of which vectors consist, if they are known.
        store: the activation store behind the source, if it has one.
        held_out_found: held-out vectors in the last pass over them, including those that it left out for their norm;
            None if the source leaves none out.
        massive_share: share of these that it left out.
        picture: height and width, if its vectors are pictures row by row.
        tail_remedy: advice for lowering the share of variance that few vectors of large norm hold; "" for none.
    """

    d_in: int
    unit: str
    device: torch.device
    text: HeldOutText | None = None
    truth: KnownFeatures | None = None
    store: FillableStore | None = None
    held_out_found: int | None = None
    massive_share: float | None = None
    picture: tuple[int, int] | None = None
    tail_remedy: str = ""

    @property
    def input_layout(self) -> Layout:
        """The parts of its inputs."""
        return Layout.of(self.d_in)

    @property
    def target_layout(self) -> Layout:
        """The parts of its targets; the inputs' own layout if a dictionary reconstructs what it reads."""
        return self.input_layout

    def at(self, end: End) -> "Source":
        """Return one end of the stream as a source of its own, whose inputs are its targets; its rows are the same."""
        assert self.target_layout == self.input_layout, f"{type(self).__name__} does not divide its rows"
        return self

    def first_targets(self) -> Float[Tensor, "vectors d_out"]:
        """Return the raw targets of `first_vectors`."""
        return self.first_vectors()

    @abstractmethod
    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        """Return the first raw inputs of the training part, from which scale and centre are measured."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield raw training batches without end, from the position on."""

    @abstractmethod
    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        """Yield at least one and at most `count` raw vectors of the held-out part, always the same ones."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position, from which a resumed run continues with exactly the next batch."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""

    @abstractmethod
    def supply(self, trained: int | None, held_out: int | None, held_out_wanted: int) -> Supply:
        """Return the numbers of vectors that training and evaluation had.

        Args:
            trained: training vectors that a run took; None for a run that trained nothing.
            held_out: held-out vectors that its evaluation found; None if it read none.
            held_out_wanted: held-out vectors that its evaluation asked for.
        """

    def costs(self) -> dict[str, float]:
        """Return seconds spent so far, by kind of work; "waiting" is the time that training waited."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request of a run to its source, in addition to the source's own settings.

    Attributes:
        model, site, dataset: the origin of a language model's activations; None if the source has no language model.
        layout: which sites make the inputs and the targets.
        training_samples: how many samples training takes; 0 if there is no training.
        held_out_samples: how many samples the evaluation takes.
        stores: the folder of all activation stores.
        harvest: whether the run only fills the store.
        spliced: whether the evaluation puts reconstructions back into the language model.
        partners: whether training batches have the partners of their samples.
    """

    model: ModelSettings | None = None
    site: Site | None = None
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    dataset: DatasetSettings | None = None
    training_samples: int
    held_out_samples: int
    stores: Path
    harvest: bool = False
    spliced: bool = False
    partners: bool = False

    def text(self) -> tuple[ModelSettings, Site, DatasetSettings]:
        """Return model, site and data set of a source that reads a language model."""
        assert self.model is not None, "the source reads a language model"
        assert self.site is not None
        assert self.dataset is not None
        return self.model, self.site, self.dataset

    def sites(self) -> Sites:
        """Return the sites of the inputs and of the targets."""
        assert self.site is not None
        return self.layout.sites(self.site)


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Ranged, ABC, group="source"):
    """Base class of all source settings: the settings of a source know how to open it.

    Attributes:
        seed: decides the order of the vectors in training, and everything else that the source draws. Runs that share
            it, and the other settings of the stream, see the same batches.
        provides: what evaluations, loss terms and tasks may need of a source, a class attribute: "language_model"
            (activations of one, with held-out text), "known_features" (a ground truth), "store" (an activation store),
            "partners" (samples have an order).
    """

    seed: int = field(default=0, metadata=SEED)

    provides: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def open(self, request: Request, heartbeat: Callable[[], None]) -> AbstractContextManager["Source"]:
        """Open the source for a run, or for several runs that share its stream.

        Args:
            request: of the run.
            heartbeat: called between units of long work; may raise to stop the work.

        Raises:
            ValueError: something that the settings name does not exist or cannot be read.
            OSError: the disk has no room for what must be kept.
        """

    @contextmanager
    def open_together(self, requests: Sequence[Request], heartbeat: Callable[[], None]) -> "Iterator[Sequence[Source]]":
        """Yield the opened sources of a pack: one for each request, which has a `stream_key` of its own.

        Args, Raises: see `open`.
        """
        # Streams that share work are a matter of sources that say so by their `pack_key`.
        (request,) = requests
        with self.open(request, heartbeat) as source:
            yield [source]

    def width(self) -> int | None:
        """Return the width of the vectors if it is known before the source is opened."""
        return None

    def other_sites(self) -> list[Site]:
        """Return the sites whose activations are harvested in the same forward passes, besides the run's own."""
        return []

    def check_training(self, samples: int, batch_size: int) -> None:
        """Raise ValueError if a training of so many samples, in batches of one size, cannot be supplied."""

    def check_harvest(self) -> None:
        """Raise ValueError if there is no store that a harvest could fill."""
        raise ValueError("task=harvest fills the activation store, which is for source=activations")

    def with_norm_limit(self, limit: float) -> tuple[Self, str | None]:
        """Return the settings with a limit for the norm of activations, unless they have a limit; also return their own
        limit if it differs."""
        return self, None

    def with_norm_limits(self, limits: list[float]) -> Self:
        """Return the settings with limits for the norms at several sites, unless they have limits."""
        return self

    def identity(self) -> dict[str, str]:
        """Return what distinguishes the files that the source reads; empty if it reads none."""
        return {}

    def stream_key(self, request: Request) -> Hashable:
        """Return what the requests of two runs must have in common for both to read one opened source."""
        return self

    def pack_key(self, request: Request) -> Hashable:
        """Return what they must have in common for both to be in one pack, whose sources are opened together."""
        return self.stream_key(request)


def in_batches(parts: Iterable[Float[Tensor, "part d_in"]], size: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield vectors from parts of any size in batches of one size; the last batch may be smaller."""
    rest: Tensor | None = None
    for part in parts:
        joined = part if rest is None else torch.cat([rest, part])
        whole = len(joined) // size * size
        if whole:
            yield from joined[:whole].split(size)
        rest = joined[whole:] if whole < len(joined) else None
    if rest is not None:
        yield rest
