"""Ranked rows: of every group the few rows that come first, whatever the order in which rows arrive."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# No row comes after this one.
LAST = torch.iinfo(torch.int64).max


class Ranked:
    """A table that keeps, of every group, the rows whose order number is smallest.

    Rows are gathered, and pruned when there are many: so a row costs little, and memory holds at most `spare` rows
    beyond the kept ones. The rows kept are a function of the set of all rows, so tables of parts of the data merge to
    the table of the whole.

    Args:
        groups: number of groups.
        per_group: rows kept of each.
        columns: names and types of the further columns, of one number per row, or of a list of some width.
        spare: rows gathered before they are pruned.
        device: of the table.
    """

    def __init__(
        self,
        groups: int,
        per_group: int,
        columns: Mapping[str, tuple[torch.dtype, int | None]],
        *,
        spare: int = 2**16,
        device: torch.device | None = None,
    ):
        self.groups, self.per_group, self._spare = groups, per_group, spare
        # The order number that a new row of a group must be below; `LAST` as long as the group has room.
        self._limits = torch.full((groups,), LAST, dtype=torch.int64, device=device)
        self._columns = {"group": (torch.int64, None), "order": (torch.int64, None), **columns}
        self._rows = {name: self._empty(*kind) for name, kind in self._columns.items()}
        self._new: list[dict[str, Tensor]] = []
        self._gathered = 0

    def __len__(self) -> int:
        return len(self._rows["group"]) + self._gathered

    def wanted(self, group: Int[Tensor, " rows"], order: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Return which rows could be kept, by the rows that are there."""
        return order < self._limits[group]

    def add(self, **columns: Tensor) -> None:
        """Add rows: `group`, `order`, and every further column."""
        assert columns.keys() == self._columns.keys()
        if len(columns["group"]):
            self._new.append(columns)
            self._gathered += len(columns["group"])
        if self._gathered > self._spare:
            self.prune()

    def prune(self) -> None:
        """Drop the rows that are not among the first of their groups, and sort the others by group and order."""
        if not self._new:
            return
        group, order = (torch.cat([self._rows[name], *(new[name] for new in self._new)]) for name in ("group", "order"))
        sort = order.argsort(stable=True)
        sort = sort[group[sort].argsort(stable=True)]
        sorted_group = group[sort]
        first = torch.searchsorted(sorted_group, sorted_group)
        rank = torch.arange(len(sort), device=sort.device) - first
        kept = sort[rank < self.per_group]
        for name in self._columns:
            # One column at a time, so that only one is there twice.
            self._rows[name] = _taken([self._rows.pop(name), *(new.pop(name) for new in self._new)], kept)
        self._new, self._gathered = [], 0
        full = rank[rank < self.per_group] == self.per_group - 1
        self._limits[self._rows["group"][full]] = self._rows["order"][full]

    def keep(self, which: Bool[Tensor, " rows"]) -> None:
        """Drop all other rows for good; `which` is of the rows that `rows` returns."""
        assert not self._new
        if not which.all():
            self._rows = {name: values[which] for name, values in self._rows.items()}

    def rows(self) -> dict[str, Tensor]:
        """Return the columns of the kept rows, sorted by group and order."""
        self.prune()
        return dict(self._rows)

    def _empty(self, dtype: torch.dtype, width: int | None) -> Tensor:
        return torch.empty((0,) if width is None else (0, width), dtype=dtype, device=self._limits.device)


def _taken(pieces: list[Tensor], rows: Int[Tensor, " rows"]) -> Tensor:
    """Return rows of the pieces, one below the other, without joining the pieces first."""
    taken = pieces[0].new_empty(len(rows), *pieces[0].shape[1:])
    begin = 0
    for piece in pieces:
        own = ((rows >= begin) & (rows < begin + len(piece))).nonzero().squeeze(1)
        taken[own] = piece[rows[own] - begin]
        begin += len(piece)
    return taken
