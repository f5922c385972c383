"""`Mutant`: one deliberate break of the code, with the test that must catch it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One break.

    Attributes:
        promise: What it breaks, in words.
        file: Where, within `peft_compiler`.
        old: Text that stands there exactly once.
        new: What takes its place.
        test: The test that must fail, within `tests`.
    """

    promise: str
    file: str
    old: str
    new: str
    test: str


CONTRACT = "methods/test_contract.py"
VERIFY = "verifying/test_verify.py"
COMPILING = "test_compiling.py"
SAVE = "interchange/test_save.py"
LOAD = "interchange/test_load.py"
MERGING = "test_merging.py"
