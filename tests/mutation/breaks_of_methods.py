"""Breaks of methods."""

from tests.mutation.mutant import CONTRACT, MERGING, VERIFY, Mutant

METHODS = (
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
        "a merged weight computes what was wired",
        "methods/_weights.py",
        'TRANSPOSED = frozenset({"transposed", ',
        'TRANSPOSED = frozenset({"linear", ',
        f"{MERGING}::test_merged_equals_unmerged",
    ),
    Mutant(
        "a folded weight is rounded once",
        "methods/_weights.py",
        "precise = torch.promote_types(weight.dtype, torch.float32)",
        "precise = weight.dtype",
        f"{MERGING}::test_a_bfloat16_weight_is_rounded_once",
    ),
    Mutant(
        "the norm of a decomposed weight is a constant to the gradient",
        "methods/dora.py",
        "norms(direction.detach())",
        "norms(direction)",
        "methods/test_dora.py::test_the_norm_is_a_constant_to_the_gradient",
    ),
    Mutant(
        "what is cut from a rank stays cut",
        "methods/adalora.py",
        "self.values.mul_(self.kept)",
        "self.values.mul_(1)",
        "test_allocating.py::test_in_the_end_the_ranks_are_the_target_on_average",
    ),
)
