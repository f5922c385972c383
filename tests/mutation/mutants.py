"""Deliberate breaks of the code, each with the test that must catch it."""

from tests.mutation.breaks_of_analysis import ANALYSIS
from tests.mutation.breaks_of_caches import CACHES
from tests.mutation.breaks_of_checkpoints import CHECKPOINTS
from tests.mutation.breaks_of_methods import METHODS
from tests.mutation.breaks_of_parts import PARTS
from tests.mutation.breaks_of_places import PLACES
from tests.mutation.breaks_of_promises import PROMISES
from tests.mutation.breaks_of_rewriting import REWRITING
from tests.mutation.breaks_of_roles import ROLES
from tests.mutation.breaks_of_shown_states import SHOWN_STATES
from tests.mutation.breaks_of_types import TYPES

MUTANTS = (
    *ANALYSIS,
    *METHODS,
    *REWRITING,
    *PROMISES,
    *CHECKPOINTS,
    *ROLES,
    *PLACES,
    *CACHES,
    *TYPES,
    *SHOWN_STATES,
    *PARTS,
)
