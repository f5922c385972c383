"""`Rows`: the part of a fused projection that plays one role."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a fused projection that belong to one role, in ascending order.

    Attributes:
        runs: (start, length) of each contiguous run.
        total: Rows of the whole projection.

    >>> str(Rows.of([0, 1, 4, 5], total=8))
    '2 × [0:2] every 4 of 8'
    """

    runs: tuple[tuple[int, int], ...]
    total: int

    @classmethod
    def of(cls, indices: Iterable[int], total: int) -> "Rows":
        """Returns the runs that ascending `indices` form."""
        rows = list(indices)
        ends = [place for place, (row, after) in enumerate(pairwise(rows), 1) if after != row + 1]
        bounds = [0, *ends, len(rows)] if rows else []
        return cls(tuple((rows[start], end - start) for start, end in pairwise(bounds)), total)

    def __len__(self) -> int:
        return sum(length for _, length in self.runs)

    @property
    def indices(self) -> tuple[int, ...]:
        """Every row, ascending."""
        return tuple(index for start, length in self.runs for index in range(start, start + length))

    def overlaps(self, other: "Rows") -> bool:
        """Whether some row is in both."""
        runs = sorted((*self.runs, *other.runs))
        return any(start + length > after for (start, length), (after, _) in pairwise(runs))

    @property
    def stride(self) -> int | None:
        """Distance from run to run when all are equally long and far apart, else None."""
        distances = {later[0] - earlier[0] for earlier, later in pairwise(self.runs)}
        lengths = {length for _, length in self.runs}
        return distances.pop() if len(distances) == 1 and len(lengths) == 1 else None

    def __str__(self) -> str:
        start, length = self.runs[0]
        if len(self.runs) == 1:
            return f"[{start}:{start + length}] of {self.total}"
        if self.stride is not None:
            return f"{len(self.runs)} × [{start}:{start + length}] every {self.stride} of {self.total}"
        return f"{len(self)} rows in {len(self.runs)} runs of {self.total}"
