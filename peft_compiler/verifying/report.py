"""`Report`: what was proved of a compiled model, one line for each promise."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of checking one promise.

    Attributes:
        promise: What every compiled model promises.
        ok: Whether this one keeps it. A promise that does not concern it is kept.
        detail: What was checked and found.
    """

    promise: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'BROKEN'}  {self.promise}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """All findings on one compiled model.

    >>> print(Report((Finding("the sky is blue", True, "looked up"),)))
    ok      the sky is blue: looked up
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every promise is kept."""
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))
