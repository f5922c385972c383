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
    Mutant(
        "a gate of a sequence is one for each example",
        "methods/_gates.py",
        "if axis != self.batch_axis]",
        "if axis != 1 - self.batch_axis]",
        "methods/test_unipelt.py::test_a_gate_of_a_sequence_is_the_mean_of_those_of_its_positions",
    ),
    Mutant(
        "a prefix keeps its gate when its MLP is dropped",
        "methods/gated_prefix.py",
        "return GatedKeysAndValues(module.prefix.settled(), module.gate)",
        "return module.prefix.settled()",
        "methods/test_unipelt.py::test_the_mlp_is_dropped_and_the_gates_are_kept",
    ),
    Mutant(
        "a prefix longer than any input is refused",
        "methods/prefix.py",
        "        yield from longer_than_any_input(self._length, site)\n",
        "",
        "methods/test_refused.py::test_what_cannot_fit_a_model_is_refused",
    ),
    Mutant(
        "a text that the tokenizer splits into nothing is refused",
        "methods/prompt.py",
        "        if self.tokens == ():",
        "        if False:",
        "methods/test_refused.py::test_what_cannot_fit_a_model_is_refused",
    ),
    Mutant(
        "true is no number",
        "methods/_method.py",
        "if isinstance(settings.get(name), bool) and",
        "if False and",
        "methods/test_refused.py::test_what_cannot_be_anywhere_is_refused",
    ),
    Mutant(
        "a shape is as its annotation says",
        "methods/_bottleneck.py",
        """    @override
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.up(""",
        """    @override
    def forward(self, x: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d"]:
        return self.up(""",
        "test_shape_checks.py::test_what_says_shapes_is_checked",
    ),
)
