"""Ranked rows: of every group the few rows that come first, whatever the order in which rows arrive."""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# The order number of a free place: no row comes after this one.
LAST = torch.iinfo(torch.int64).max
# Rows that are copied at once: few megabytes.
_AT_ONCE = 2**12


class Ranked:
    """A table that keeps, of every group, the rows whose order number is smallest.

    Every group has its places from the start, so memory does not grow, and a row that stays is not moved. The rows kept
    are a function of the set of all rows, so tables of parts of the data merge to the table of the whole.

    Args:
        groups: number of groups.
        per_group: rows kept of each.
        columns: names and types of the further columns, of one number per row, or of a list of some width.
        device: of the table.
        at_once: rows that are copied at once.
    """

    def __init__(
        self,
        groups: int,
        per_group: int,
        columns: Mapping[str, tuple[torch.dtype, int | None]],
        *,
        device: torch.device | None = None,
        at_once: int = _AT_ONCE,
    ):
        self.groups, self.per_group, self._at_once = groups, per_group, at_once
        # `full` writes every page: what is kept takes its memory here, and not in the middle of a pass.
        self._orders = torch.full((groups, per_group), LAST, dtype=torch.int64, device=device)
        self._columns = {
            name: torch.full((groups, per_group, *([] if width is None else [width])), 0, dtype=dtype, device=device)
            for name, (dtype, width) in columns.items()
        }
        # The order number that a new row of a group must be below.
        self._limits = torch.full((groups,), LAST if per_group else 0, dtype=torch.int64, device=device)
        self._settled = True

    @staticmethod
    def group_bytes(per_group: int, column_bytes: int) -> int:
        """Return the bytes of a group, if a row takes `column_bytes` besides its order."""
        return per_group * (8 + column_bytes) + 8

    def add(
        self,
        group: Int[Tensor, " rows"],
        order: Int[Tensor, " rows"],
        columns_of: Callable[[Int[Tensor, " some"]], Mapping[str, Tensor]],
        allowed: Bool[Tensor, " rows"] | None = None,
    ) -> Int[Tensor, " kept"]:
        """Offer rows, and return the numbers of those that are kept.

        Args:
            group: of each row.
            order: of each row; no two rows of a group, here and in the table, have the same one.
            columns_of: returns the further columns of some of these rows.
            allowed: rows that may be kept; None for all.
        """
        wanted = order < self._limits[group]
        if allowed is not None:
            wanted &= allowed
        rows = wanted.nonzero().squeeze(1)
        rows = rows[order[rows].argsort()]
        rows = rows[group[rows].argsort(stable=True)]
        touched, number, counts = group[rows].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[number]
        # At most `per_group` of a group can be kept.
        first = rank < self.per_group
        rows, number, rank = rows[first], number[first], rank[first]
        # The best new row takes the place of the worst old one if it is better, the second best that of the second
        # worst, and so on.
        worst, place = self._orders[touched].sort(dim=1, descending=True)
        kept = order[rows] < worst[number, rank]
        rows, number, rank = rows[kept], number[kept], rank[kept]
        target = touched[number] * self.per_group + place[number, rank]
        self._orders.view(-1)[target] = order[rows]
        if self.per_group:
            self._limits[touched] = self._orders[touched].amax(1)
        if self._columns:
            for some, places in zip(rows.split(self._at_once), target.split(self._at_once), strict=True):
                for name, values in columns_of(some).items():
                    self._columns[name].flatten(0, 1)[places] = values
        self._settled = False
        return rows

    def clear(self, groups: Int[Tensor, " groups"]) -> None:
        """Drop all rows of some groups."""
        self._orders[groups] = LAST
        self._limits[groups] = LAST if self.per_group else 0
        self._settled = False

    def tensors(self) -> dict[str, Tensor]:
        """Return the table itself, (groups, per_group, ...): `order`, `LAST` for a free place, and every column.

        Rows are sorted by order and free places are zero, so that equal tables have equal bytes.
        """
        if not self._settled:
            for groups in self._slices():
                orders, place = self._orders[groups].sort(dim=1)
                self._orders[groups] = orders
                each = torch.arange(len(place), device=place.device)[:, None]
                for values in self._columns.values():
                    sorted_values = values[groups][each, place]
                    sorted_values[orders == LAST] = 0
                    values[groups] = sorted_values
            self._settled = True
        return {"order": self._orders, **self._columns}

    def rows(self, groups: slice = slice(None)) -> dict[str, Tensor]:
        """Return the rows of some groups, sorted by group and order: `group`, `rank`, `order` and the columns."""
        tables = {name: values[groups] for name, values in self.tensors().items()}
        group, rank = (tables["order"] != LAST).nonzero(as_tuple=True)
        rows = {name: values[group, rank] for name, values in tables.items()}
        return {"group": group + (groups.start or 0), "rank": rank, **rows}

    def merge(self, tensors: Mapping[str, Tensor], allowed: Bool[Tensor, " groups"] | None = None) -> None:
        """Offer the rows of another table, as `tensors` returns them; those of the allowed groups, or all."""
        for groups in self._slices():
            tables = {name: values[groups].to(self._orders.device) for name, values in tensors.items()}
            there = tables["order"] != LAST
            if allowed is not None:
                there &= allowed[groups, None]
            group, rank = there.nonzero(as_tuple=True)
            own = {name: values[group, rank] for name, values in tables.items() if name != "order"}
            self.add(
                group + groups.start,
                tables["order"][group, rank],
                lambda some, own=own: {name: values[some] for name, values in own.items()},
            )

    def _slices(self) -> Iterator[slice]:
        step = max(1, self._at_once // max(1, self.per_group))
        for begin in range(0, self.groups, step):
            yield slice(begin, min(begin + step, self.groups))
