"""The exceptions this package raises on purpose: one base class, one subclass per stage."""

from collections.abc import Iterable


class PeftCompilerError(Exception):
    """Base of every deliberate error. Catch this to catch them all.

    Attributes:
        problems: Each problem on its own, in the order in which it was found.
    """

    def __init__(self, summary: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        indented = (problem.replace("\n", "\n  ") for problem in self.problems)
        super().__init__("\n  ".join([summary, *indented]))


class MethodError(PeftCompilerError):
    """A method class is declared wrongly. Raised at import, for the method's author."""


class SpecError(PeftCompilerError):
    """What the user wrote is not a spec: unreadable, misspelt or out of range."""


class CaptureError(PeftCompilerError):
    """The model could not be run once to record its op graph."""


class PlanError(PeftCompilerError):
    """A valid spec does not fit this model. Raised before anything is touched."""


class LoweringError(PeftCompilerError):
    """A place of the plan cannot be rewritten. Nothing was changed."""


class InterchangeError(PeftCompilerError):
    """A folder cannot be written, or holds something else than what was saved."""


class MergeError(PeftCompilerError):
    """The inserted parameters cannot be folded into the base's own."""
