"""Every comparison, by name."""

from collections.abc import Iterator

from benchmarks.adapters_oracle.case import Case
from benchmarks.adapters_oracle.different import DIFFERENT
from benchmarks.adapters_oracle.equal import EQUAL


def each() -> Iterator[tuple[str, Case, str]]:
    """Yields a name for files, the case and the model, for every comparison."""
    for number, case in enumerate((*EQUAL, *DIFFERENT)):
        for model in case.models:
            yield f"{number:02}-{model}".replace(" ", "").replace(",", "-"), case, model
