"""Python's search for garbage, put off while there is none to find."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Generator[None]:
    """Keeps Python from looking for garbage within; as a decorator, within a function.

    A stage keeps all that it makes until its end, so there is none. Yet a hundred thousand new
    objects would have everything searched that was ever imported, which takes longer than the stage.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
