"""Breaks of what is promised of encoders with prompts: they are read, and not shown."""

from tests.mutation.mutant import Mutant

TESTS = "lowering/test_shown_states.py"
SHOWN_STATES = (
    Mutant(
        "a model shows the states of the user's tokens",
        "lowering/shown_states.py",
        "else states[:, length:])",
        "else states[:, : states.shape[1] - length])",
        f"{TESTS}::test_what_is_shown_are_the_states_of_the_users_tokens",
    ),
    Mutant(
        "attention to prompts is not shown",
        "lowering/shown_states.py",
        "return probabilities[..., length:] if is_map else probabilities",
        "return probabilities",
        f"{TESTS}::test_what_is_shown_is_as_long_as_what_was_given",
    ),
    Mutant(
        "what was shown is read with the prompts it was cut from",
        "lowering/shown_states.py",
        "shown.cut_from = states",
        "shown.cut_from = shown",
        f"{TESTS}::test_states_that_are_handed_on_compute_the_same",
    ),
    Mutant(
        "an encoder shows its attention without prompts to generate too",
        "lowering/prompted_calls.py",
        "for key in list(output)[1:]:",
        "for key in ():",
        f"{TESTS}::test_generation_reads_the_prompts_and_shows_none",
    ),
)
