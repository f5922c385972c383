"""Deliberate breaks of the code, each with the test that must catch it."""

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

MUTANTS = (
    Mutant(
        "LoRA is the identity at initialisation",
        "methods/lora.py",
        "torch.zeros(*stack, site.width_out",
        "torch.ones(*stack, site.width_out",
        f"{CONTRACT}::test_it_keeps_the_contract",
    ),
    Mutant(
        "an adapter is the identity at initialisation",
        "methods/_bottleneck.py",
        "nn.init.zeros_(linear.bias)",
        "nn.init.constant_(linear.bias, 1e-6)",
        f"{VERIFY}::test_every_promise_is_kept",
    ),
    Mutant(
        "the update is scaled by alpha / r",
        "methods/lora.py",
        "math.sqrt(self.r) if self.rank_stabilised",
        "math.sqrt(self.r) if not self.rank_stabilised",
        "methods/test_lora.py::test_the_scale_is_alpha_over_r_and_one_by_default",
    ),
    Mutant(
        "every update is scaled",
        "methods/_low_rank.py",
        "return functional.linear(self.scale * functional.linear(x, self.down), self.up)",
        "return functional.linear(functional.linear(x, self.down), self.up)",
        f"{CONTRACT}::test_it_keeps_the_contract",
    ),
    Mutant(
        "a method draws from its own generator",
        "methods/_prompts.py",
        "values.normal_(std=scale, generator=generator)",
        "values.normal_(std=scale)",
        f"{CONTRACT}::test_it_keeps_the_contract",
    ),
    Mutant(
        "the count is the formula's",
        "methods/_bottleneck.py",
        "return 2 * m * d + d + m",
        "return 2 * m * d + m",
        f"{CONTRACT}::test_it_keeps_the_contract",
    ),
    Mutant(
        "a rank above the full one is refused",
        "methods/_weights.py",
        "if r > limit:",
        "if r > limit + 1:",
        "methods/test_lora.py::test_what_does_not_fit_is_refused_with_the_reason",
    ),
    Mutant(
        "other rows of stacked experts are untouched",
        "methods/_weights.py",
        "else torch.tensor(site.rows.indices)",
        "else torch.arange(len(site.rows))",
        "methods/test_lora.py::test_other_rows_of_experts_are_the_very_same_numbers",
    ),
    Mutant(
        "gradients reach every insertion",
        "methods/_low_rank.py",
        "return functional.linear(self.scale * functional.linear(x, self.down), self.up)",
        "return functional.linear(self.scale * functional.linear(x, self.down.detach()), self.up)",
        f"{CONTRACT}::test_it_keeps_the_contract",
    ),
    Mutant(
        "the copy of a part of the base is apart from it",
        "methods/trained_copy.py",
        "copy.deepcopy(host).requires_grad_()",
        "copy.copy(host).requires_grad_()",
        "methods/test_others.py::test_a_copy_is_apart_from_its_host",
    ),
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
        "a merged weight computes what was wired",
        "methods/_weights.py",
        'TRANSPOSED = frozenset({"transposed", ',
        'TRANSPOSED = frozenset({"linear", ',
        f"{MERGING}::test_merged_equals_unmerged",
    ),
    Mutant(
        "merging leaves the compiled model alone",
        "merging.py",
        "host.get_parameter(name).detach().clone() for part",
        "host.get_parameter(name).detach() for part",
        f"{MERGING}::test_merged_equals_unmerged",
    ),
    Mutant(
        "a tied weight does not move on merge",
        "merging.py",
        "elif len(owners[id(parameter)]) > 1 and not untie:",
        "elif len(owners[id(parameter)]) > 2 and not untie:",
        f"{MERGING}::test_a_tied_weight_is_refused_or_untied",
    ),
    Mutant(
        "a folded weight is rounded once",
        "methods/_weights.py",
        "precise = torch.promote_types(weight.dtype, torch.float32)",
        "precise = weight.dtype",
        f"{MERGING}::test_a_bfloat16_weight_is_rounded_once",
    ),
    Mutant(
        "a crash while saving leaves the old folder",
        "interchange/save.py",
        "        old.rename(folder)\n        raise",
        "        raise",
        f"{SAVE}::test_a_failure_at_any_step_leaves_the_old_folder_or_none",
    ),
    Mutant(
        "a folder that holds something else is not overwritten",
        "interchange/save.py",
        "        if strangers:",
        "        if len(strangers) > 1:",
        f"{SAVE}::test_a_folder_that_holds_something_else_is_refused",
    ),
    Mutant(
        "only inserted parameters are saved",
        "interchange/save.py",
        "        if is_inserted(name):\n            owners.setdefault(id(tensor), name)",
        "        owners.setdefault(id(tensor), name)",
        f"{SAVE}::test_only_inserted_parameters_are_written",
    ),
    Mutant(
        "a base with other weights is refused",
        "interchange/load.py",
        ".weights != manifest.base.weights:",
        ".model != manifest.base.model:",
        f"{LOAD}::test_one_other_bit_in_the_base_is_refused",
    ),
    Mutant(
        "a base with another config is refused",
        "interchange/fingerprint.py",
        "            if mine != others:",
        "            if type(mine) is not type(others):",
        f"{LOAD}::test_another_base_is_refused_saying_what_differs",
    ),
    Mutant(
        "a tensor that the plan does not have is refused",
        "interchange/load.py",
        "for name in header.keys() - expected.keys():",
        "for name in expected.keys() - expected.keys():",
        f"{LOAD}::test_all_wrong_tensors_are_named_at_once",
    ),
    Mutant(
        "a file that was cut off is refused",
        "interchange/load.py",
        "if 8 + length + end != size:",
        "if 8 + length + end < size:",
        f"{LOAD}::test_a_bad_tensor_file_is_one_clear_error",
    ),
    Mutant(
        "loading fills in the parameters",
        "interchange/load.py",
        "tensor.copy_(saved[name])",
        "saved[name].copy_(tensor)",
        f"{LOAD}::test_what_is_loaded_is_what_was_saved",
    ),
    Mutant(
        "every bit of a tensor counts in its digest",
        "digests.py",
        'sha256.update(f"{part.dtype} {tuple(part.shape)};".encode())',
        "part = part.round(decimals=3) if part.is_floating_point() else part",
        "test_digests.py",
    ),
    Mutant(
        "verify sees a base that changed",
        "verifying/structure.py",
        "if now.get(name) != before[name]]",
        "if name not in now]",
        f"{VERIFY}::test_a_broken_model_is_found_out",
    ),
    Mutant(
        "verify sees an insertion that starts as something else",
        "verifying/behaviour.py",
        "if not equal(run(fresh, subject.inputs), run(subject.base, subject.inputs)):",
        "if not equal(run(fresh, subject.inputs), run(fresh, subject.inputs)):",
        f"{VERIFY}::test_an_insertion_that_is_not_the_identity_is_found_out",
    ),
    Mutant(
        "verify leaves the compiled model alone",
        "verifying/subject.py",
        "return copy.deepcopy(tuned, kept)",
        "return tuned",
        f"{VERIFY}::test_every_promise_is_kept_after_training_and_nothing_changes",
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
        "the norm of a decomposed weight is a constant to the gradient",
        "methods/dora.py",
        "norms(direction.detach())",
        "norms(direction)",
        "methods/test_dora.py::test_the_norm_is_a_constant_to_the_gradient",
    ),
    Mutant(
        "a weight is mapped before anything stands beside it",
        "planning/planner.py",
        "i.wiring is not Wiring.ON_WEIGHT",
        "i.wiring is Wiring.ON_WEIGHT",
        "lowering/test_on_weight.py::test_a_weight_is_mapped_before_anything_stands_beside_it",
    ),
    Mutant(
        "what is cut from a rank stays cut",
        "methods/adalora.py",
        "self.values.mul_(self.kept)",
        "self.values.mul_(1)",
        "test_allocating.py::test_in_the_end_the_ranks_are_the_target_on_average",
    ),
)
