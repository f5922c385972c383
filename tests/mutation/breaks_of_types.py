"""Breaks of what is promised of types of numbers: what learns is precise, and meets its base by casts."""

from tests.mutation.mutant import Mutant

TYPES = (
    Mutant(
        "what learns beside bfloat16 is float32",
        "lowering/homes.py",
        "return torch.float64 if weight == torch.float64 else torch.float32",
        "return weight",
        "citizen/test_types.py::test_small_steps_are_lost_in_bfloat16_and_kept_in_float32",
    ),
    Mutant(
        "what comes into an insertion has its type",
        "lowering/casting.py",
        "return _cast(inserted(*_cast(args, _type_of(inserted, like.dtype))), like.dtype)",
        "return _cast(inserted(*args), like.dtype)",
        "citizen/test_types.py::test_every_method_learns_in_float32_beside_bfloat16",
    ),
    Mutant(
        "what an insertion gives has the type of the stream",
        "lowering/casting.py",
        "return _cast(inserted(*_cast(args, _type_of(inserted, like.dtype))), like.dtype)",
        "return inserted(*_cast(args, _type_of(inserted, like.dtype)))",
        "citizen/test_types.py::test_every_method_learns_in_float32_beside_bfloat16",
    ),
    Mutant(
        "a copy computes in the type of its host",
        "lowering/casting.py",
        "    if _type_of(inserted, dtype) == dtype:",
        "    if inserted is not host:",
        "citizen/test_types.py::test_a_copy_in_float32_computes_what_the_base_does_in_every_thread",
    ),
    Mutant(
        "a spec decides the type of what is inserted",
        "lowering/homes.py",
        "dtype = precise_type(weight.dtype) if chosen is None else getattr(torch, chosen)",
        "dtype = precise_type(weight.dtype)",
        "citizen/test_types.py::test_the_spec_may_choose_the_type",
    ),
)
