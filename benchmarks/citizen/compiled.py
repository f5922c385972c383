"""torch.compile and torch.export take a compiled model whole, and recompile nothing after warm-up."""

from typing import Any

import torch
from torch.testing import assert_close

from benchmarks.citizen.cell import Case, Feature, NotApplicableError
from tests import zoo
from tests.test_compiling import main_output

SIZES = (2, 7), (3, 11), (4, 9), (5, 13)


def whole(case: Case) -> None:
    """One graph serves every batch and length; after two sizes nothing is compiled again."""
    tuned = _without_lstm(case)
    torch._dynamo.reset()
    compiled = torch.compile(tuned, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        tuned(**_inputs(case, 2, 7))  # a signature is traced when first met, outside of compiled code
        for size in SIZES[:2]:
            compiled(**_inputs(case, *size))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in SIZES[2:]:
                inputs = _inputs(case, *size)
                found, expected = main_output(compiled(**inputs)), main_output(tuned(**inputs))
                assert_close(found, expected)


def trained(case: Case) -> None:
    """Gradients through the compiled graph, backward included, are those without it."""
    tuned = _without_lstm(case)
    tuned(**_inputs(case, 2, 7))
    torch._dynamo.reset()
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True, dynamic=True)
    expected = _gradients(case, tuned, tuned)
    for name, gradient in _gradients(case, compiled, tuned).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def exported(case: Case) -> None:
    """What torch.export gives computes the same, padded rows too."""
    tuned, inputs = _without_lstm(case), _inputs(case, 2, 7)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = main_output(tuned(**inputs))
        program = torch.export.export(tuned, (), inputs, strict=True).module()
        assert_close(main_output(program(**inputs)), expected)


def _gradients(case: Case, model: Any, tuned: Any) -> dict[str, torch.Tensor]:
    tuned.zero_grad()
    main_output(model(**_inputs(case, 2, 7))).square().mean().backward()
    return {name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None}


def _without_lstm(case: Case) -> Any:
    tuned = case.tuned()
    if any(isinstance(module, torch.nn.LSTM) for module in tuned.modules()):
        raise NotApplicableError("torch.compile(fullgraph=True) takes no LSTM")
    return tuned


def _inputs(case: Case, batch: int, length: int) -> dict[str, Any]:
    extra = {} if case.architecture in ("bert", "torch_encoder", "handmade") else {"use_cache": False}
    return {**zoo.inputs(case.architecture, batch, length), **extra}


FEATURES = (
    Feature("torch.compile", whole, ("llama", "t5")),
    Feature("torch.compile, backward", trained, ("llama",)),
    Feature("torch.export", exported, ("llama", "bert")),
)
