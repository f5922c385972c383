"""Breaks of what spares the analysis work: repeats, rows as runs, searches that go on."""

from tests.mutation.mutant import Mutant

ANALYSIS = (
    Mutant(
        "operands of other strides are no repeat",
        "analysis/repeats.py",
        "return value.shape, value.stride(), value.dtype",
        "return value.shape, value.dtype",
        "analysis/test_repeats.py::test_what_differs_is_no_repeat",
    ),
    Mutant(
        "operands of another type are no repeat",
        "analysis/repeats.py",
        "value.stride(), value.dtype\n        # The recorder",
        "value.stride()\n        # The recorder",
        "analysis/test_repeats.py::test_what_differs_is_no_repeat",
    ),
    Mutant(
        "numbers that were written to are no repeat",
        "analysis/repeats.py",
        "return id(value), value._version",
        "return id(value), 0",
        "analysis/test_repeats.py::test_numbers_that_were_written_to_are_not_the_numbers_of_before",
    ),
    Mutant(
        "a write is no repeat",
        "analysis/repeats.py",
        "not written and made_up",
        "made_up",
        "analysis/test_repeats.py::test_a_write_is_made_again_beside_a_new_result",
    ),
    Mutant(
        "an answer that is made up is no repeat",
        "analysis/repeats.py",
        " and made_up == self._floats.faked",
        "",
        "analysis/test_repeats.py::test_every_answer_that_is_made_up_is_counted",
    ),
    Mutant(
        "settings of other names are no repeat",
        "analysis/repeats.py",
        "*((name, _described(value)) for",
        "*(_described(value) for",
        "analysis/test_repeats.py::test_the_names_of_settings_tell_calls_apart",
    ),
    Mutant(
        "a constant of another type is no repeat",
        "analysis/repeats.py",
        "return kind, value\n",
        "return value\n",
        "analysis/test_repeats.py::test_what_differs_is_no_repeat",
    ),
    Mutant(
        "a result with gradients is no repeat",
        "analysis/repeats.py",
        "not (torch.is_grad_enabled() or within_vmap)",
        "not within_vmap",
        "analysis/test_repeats.py::test_a_result_that_gradients_go_through_is_computed_again",
    ),
    Mutant(
        "a view is of its own operand",
        "analysis/repeats.py",
        "        return _Viewed()\n",
        "        return _Made(found[0].shape, found[0].stride(), found[0].dtype)\n",
        "analysis/test_repeats.py::test_a_view_is_made_again_of_the_operand_at_hand",
    ),
    Mutant(
        "a layer built otherwise is probed itself",
        "analysis/roles/fused_rows.py",
        "key = (shape, axis, _signature(linear.node, target, region))",
        "key = (shape, axis)",
        "analysis/test_find_sites.py",
    ),
    Mutant(
        "runs that touch do not overlap",
        "rows.py",
        "start + length > after",
        "start + length >= after",
        "test_rows.py::test_rows_overlap_where_one_is_in_both",
    ),
    Mutant(
        "what lies before a stack is searched once",
        "analysis/roles/inputs.py",
        "passed.setdefault(block.stack, set())",
        "set()",
        "analysis/roles/test_inputs.py::test_the_search_grows_with_the_layers_alone",
    ),
    Mutant(
        "the search for garbage goes on as before",
        "analysis/garbage.py",
        "        if was_on:\n            gc.enable()",
        "        gc.enable()",
        "analysis/test_garbage.py",
    ),
    Mutant(
        "streams that mix themselves are streams",
        "analysis/roles/residuals.py",
        "else _mixed_stream(flow, origin)",
        "else None",
        "architectures/test_hyper_connections.py",
    ),
)
