"""Keeps the terminal for this program's own words."""

from collections.abc import Generator
from contextlib import contextmanager
from logging import CRITICAL

from transformers.utils import logging


@contextmanager
def quiet() -> Generator[None]:
    """Silences transformers' warnings, load reports and loading bars within; a Trainer's bar stays."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
