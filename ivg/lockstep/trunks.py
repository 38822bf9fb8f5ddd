"""Which rows of a cache begin alike: beams of one prompt share it, and what they said before they parted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Trunks:
    """The trunk that each row stands on; all rows of a trunk hold the same in its first columns.

    Attributes:
        ids: (R,) the row's trunk.
        common: (R,) how many columns, from the first on, the trunk has; the same number for all its rows.
    """

    ids: tuple[int, ...] = ()
    common: tuple[int, ...] = ()

    @classmethod
    def apart(cls, num_rows: int) -> Trunks:
        """Return trunks of which nothing is known but that rows are rows."""
        return cls(tuple(range(num_rows)), (0,) * num_rows)

    def in_common(self, row: int, other: int) -> int:
        """Return how many first columns two rows are known to share; 0 where one is not there yet."""
        if max(row, other) >= len(self.ids) or self.ids[row] != self.ids[other]:
            return 0
        return self.common[row]

    def select(self, rows: Sequence[int]) -> Trunks:
        """Return what holds for `rows`, in any order, repeats allowed."""
        return Trunks(tuple(self.ids[r] for r in rows), tuple(self.common[r] for r in rows))

    def continued(self, parents: Sequence[int], width: int) -> Trunks:
        """Return what holds for rows that continue `parents` of these rows.

        Args:
            parents: (R',) rows.
            width: columns that a parent has.
        """
        of_trunk: dict[int, set[int]] = {}
        for parent in parents:
            of_trunk.setdefault(self.ids[parent], set()).add(parent)
        # A trunk with one parent left goes up to where that parent ends.
        common = (width if len(of_trunk[self.ids[p]]) == 1 else self.common[p] for p in parents)
        return Trunks(tuple(self.ids[p] for p in parents), tuple(common))

    def shifted(self, columns: int) -> Trunks:
        """Return what holds once every row has that many more columns on the left, all alike; or fewer."""
        return Trunks(self.ids, tuple(max(0, common + columns) for common in self.common))

    def followed_by(self, others: Trunks) -> Trunks:
        """Return both, one below the other."""
        first = 1 + max(self.ids, default=-1)
        return Trunks((*self.ids, *(first + i for i in others.ids)), (*self.common, *others.common))
