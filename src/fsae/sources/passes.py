"""Forward passes in which a language model reads text: what activations depend on besides text and site."""

from dataclasses import dataclass
from typing import Any, Self

from fsae.devices import dtype_of, rows_at_once
from fsae.language_models.identity import model_identity
from fsae.language_models.settings import ModelSettings
from fsae.sources.room import Room


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forward passes of a language model, and the folder that keeps what they find.

    Attributes:
        model: the language model.
        dtype: of its activations.
        rows: per pass, on which the last bits of activations depend.
        kept_in: the folder of all activations, where those of an evaluation's own texts are kept, too; None for none.
    """

    model: ModelSettings
    dtype: str
    rows: int
    kept_in: Room | None = None

    @classmethod
    def of(cls, model: ModelSettings, context: int, kept_in: Room | None = None) -> Self:
        """Return the passes of a language model over rows of `context` tokens; the device decides dtype and rows."""
        dtype = str(dtype_of(model)).removeprefix("torch.")
        return cls(model=model, dtype=dtype, rows=rows_at_once(model, context), kept_in=kept_in)

    @property
    def numerics(self) -> dict[str, Any]:
        """Return what the device decides."""
        return {"dtype": self.dtype, "rows": self.rows}

    @property
    def origin(self) -> dict[str, Any]:
        """Return what decides the activations of a text that is read alone: the identity of the weights, and the dtype.

        Raises:
            ValueError: the model does not exist, or the hub cannot be reached.
        """
        return {"model": model_identity(self.model), "dtype": self.dtype}
