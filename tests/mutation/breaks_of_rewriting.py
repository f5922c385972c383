"""Breaks of what finds, plans and rewrites places."""

from tests.mutation.mutant import COMPILING, LOAD, VERIFY, Mutant

REWRITING = (
    Mutant(
        "the base is frozen",
        "lowering/lower.py",
        "nn.Parameter(parameter.detach(), requires_grad=False) if plain",
        "nn.Parameter(parameter.detach(), requires_grad=True) if plain",
        f"{VERIFY}::test_the_report_has_one_line_for_each_promise",
    ),
    Mutant(
        "the caller's model stays as it was",
        "lowering/lower.py",
        "nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter",
        "parameter.requires_grad_(False)",
        f"{LOAD}::test_what_is_loaded_is_what_was_saved",
    ),
    Mutant(
        "another rule changes no other initial value",
        "lowering/lower.py",
        "generator_for(insertion.path, seed)",
        "generator_for(str(id(insertion)), seed)",
        f"{COMPILING}::test_another_rule_changes_no_other_initial_value",
    ),
    Mutant(
        "other rows of fused projections are untouched",
        "lowering/rows.py",
        "(start, total - start - length))",
        "(total - start - length, start))",
        "lowering/test_rows.py::test_rows",
    ),
    Mutant(
        "every query sees every prompt",
        "lowering/prompted.py",
        "torch.cat([mask.new_ones(shape), mask], -1)",
        "torch.cat([mask.new_zeros(shape), mask], -1)",
        "lowering/test_prompted.py::test_every_query_sees_every_prompt",
    ),
    Mutant(
        "prompts beside an ALiBi bias are as near as the nearest key",
        "lowering/prompted.py",
        "else bias.amax(-1, keepdim=True)",
        "else bias.amin(-1, keepdim=True)",
        "lowering/test_prompted.py::test_a_fixed_bias_may_be_shifted_row_by_row",
    ),
    Mutant(
        "a rule that binds nothing is refused",
        "planning/misfits.py",
        "    elif not binding.sites:\n        yield _nothing_left(binding, sites, depths)\n",
        "",
        "planning/test_misfits.py",
    ),
    Mutant(
        "an expectation that is not met is refused",
        "planning/misfits.py",
        "        yield from _unmet_expectation(binding)\n",
        "",
        "planning/test_misfits.py",
    ),
    Mutant(
        "two rules with one method at one place are refused",
        "planning/clashes.py",
        "        if len(labels) > 1:",
        "        if len(labels) > 2:",
        "planning/test_misfits.py",
    ),
    Mutant(
        "a weight is mapped before anything stands beside it",
        "planning/planner.py",
        "i.wiring is not Wiring.ON_WEIGHT",
        "i.wiring is Wiring.ON_WEIGHT",
        "lowering/test_on_weight.py::test_a_weight_is_mapped_before_anything_stands_beside_it",
    ),
    Mutant(
        "of several prompts at the input each has positions of its own",
        "lowering/extend_input.py",
        "Lookup(table, place.anchor, behind))",
        "Lookup(table, place.anchor, 0))",
        "methods/test_together.py::test_of_several_prompts_at_the_input_the_last_stands_first",
    ),
    Mutant(
        "a batch has each row once for each member of an ensemble",
        "lowering/extend_input.py",
        "Batch(len(prompts), place.argument, bool(place.readers))",
        "Batch(1, place.argument, bool(place.readers))",
        "lowering/test_ensembles.py",
    ),
    Mutant(
        "what stands after a projection stands after all that joined it before",
        "lowering/wire.py",
        """    while "replaced_by" in node.meta:
        node = node.meta["replaced_by"]
    return node""",
        "    return node",
        "methods/test_together.py::test_on_one_projection_the_order_of_the_plan_is_that_of_the_formula",
    ),
    Mutant(
        "the gate of a prefix reads what the attention is applied to",
        "lowering/wire.py",
        "prompts = inserted_call(graph, edit, tensors_given(taker)[source.operand])",
        "prompts = inserted_call(graph, edit, tensors_given(taker)[source.operand] * 0)",
        "methods/test_unipelt.py::test_the_formula_is_the_papers",
    ),
    Mutant(
        "examples flattened with their positions are not averaged over",
        "analysis/roles/batches.py",
        "found > 0 and any(",
        "found > 9 and any(",
        "analysis/roles/test_batches.py::test_a_flattened_batch_is_no_proof",
    ),
    Mutant(
        "shared insertions have one and the same parameters",
        "lowering/sharing.py",
        "setattr(module, name, tensor)",
        "setattr(module, name, type(tensor)(tensor.detach()))",
        "lowering/test_sharing.py::test_what_rules_insert_is_one_and_heads_are_two",
    ),
    Mutant(
        "insertions are shared on equal weights of the base only",
        "lowering/sharing.py",
        "if here.get(name) != there.get(name)]",
        "if name not in here]",
        "lowering/test_sharing.py::test_every_reason_is_listed",
    ),
    Mutant(
        "a beam that is picked takes the rows of all members",
        "lowering/ensembles.py",
        "beam_idx[:, None] * self.members + ",
        "beam_idx[:, None] + ",
        "lowering/test_ensembles.py::test_a_beam_search_scores_by_the_mean_of_the_members",
    ),
)
