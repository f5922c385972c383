"""Local graphs compute what the forward computes: same values, same caches, same random numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_compiler.errors import LoweringError
from peft_compiler.lowering.emit import emit, tidy
from peft_compiler.lowering.guards import GuardFailed
from peft_compiler.lowering.snapshots import snapshot
from peft_compiler.lowering.trace import LocalTracer
from tests import zoo

MODES = ["eval", "train", "decode", "eager"]


class Calls:
    """Arguments of the last call of each container below a model."""

    def __init__(self, model: nn.Module) -> None:
        self.by_path: dict[str, tuple[Any, Any]] = {}
        self.handles = [
            module.register_forward_pre_hook(self._hook(path), with_kwargs=True)
            for path, module in model.named_modules()
            if path
            and next(module.children(), None) is not None
            and type(module).__module__ != "torch.nn.modules.container"
        ]

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.by_path[path] = snapshot((args, kwargs))

        return hook

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


def record(model: nn.Module, name: str, mode: str, batch: int, length: int) -> dict[str, tuple[Any, Any]]:
    calls, arguments = Calls(model), zoo.inputs(name, batch, length)
    with torch.no_grad():
        if mode != "decode":
            model(**arguments)
        elif name in zoo.SEQ2SEQ:
            first = model(**arguments, use_cache=True)
            mask = {key: value for key, value in arguments.items() if key == "attention_mask"}
            model(
                encoder_outputs=(first.encoder_last_hidden_state,),
                decoder_input_ids=arguments["decoder_input_ids"][:, :1],
                past_key_values=first.past_key_values,
                **mask,
            )
        else:
            first = model(**arguments, use_cache=True)
            model(input_ids=arguments["input_ids"][:, :1], past_key_values=first.past_key_values)
    calls.stop()
    return calls.by_path


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        yield from tensors(list(vars(value).values()))


def assert_same(found: Any, expected: Any) -> None:
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in zoo.ALL if name not in ("mamba", "torch_encoder")])
def test_every_container_is_traced_exactly(name: str, mode: str) -> None:
    if mode == "decode" and name not in (*zoo.CAUSAL, *zoo.SEQ2SEQ):
        pytest.skip("has no cache")
    if mode == "decode" and name == "handmade":
        pytest.skip("has no cache")
    model = zoo.build(name, "eager" if mode == "eager" and name not in ("handmade", "mpt") else None).train(
        mode == "train"
    )
    small, large = record(model, name, mode, 2, 7), record(model, name, mode, 3, 9)
    seen: set[str] = set()
    for path, (args, kwargs) in small.items():
        module = model.get_submodule(path)
        if type(module).__name__ in seen:
            continue
        tracer = LocalTracer(module)
        graph = tracer.trace(type(module).forward, args, kwargs)
        seen.add(type(module).__name__)
        tidy(graph)
        graph.lint()
        _, run = emit(graph)
        for args, kwargs in (small[path], large[path]):
            ours, theirs = snapshot((args, kwargs)), snapshot((args, kwargs))
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                expected = module.forward(*theirs[0], **theirs[1])
                torch.manual_seed(5)
                found = run(
                    module, *[ours[0][a] if isinstance(a, int) else ours[1][a] for a in tracer.arguments]
                )
            assert type(found) is type(expected)
            assert_same(found, expected)
            assert_same(ours, theirs)  # caches were written alike
    assert seen


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 2 else x + 1


def test_a_branch_on_a_size_is_guarded() -> None:
    module = Branching()
    graph = LocalTracer(module).trace(Branching.forward, (torch.ones(2),), {})
    tidy(graph)
    _, run = emit(graph)
    assert torch.equal(run(module, torch.ones(1)), torch.full((1,), 2.0))
    with pytest.raises(GuardFailed):
        run(module, torch.ones(3))


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x[0]
        for index in range(1, x.shape[0]):
            total = total + x[index]
        return total


def test_a_loop_over_a_size_holds_for_that_size_alone() -> None:
    module = Looping()
    graph = LocalTracer(module).trace(Looping.forward, (torch.ones(3, 2),), {})
    tidy(graph)
    _, run = emit(graph)
    with pytest.raises(GuardFailed):
        run(module, torch.ones(4, 2))


class Seen:
    """A cache that counts its positions in a tensor, as one of a fixed size does, or in a plain number."""

    def __init__(self, count: Tensor | int) -> None:
        self.count = count

    def get_seq_length(self) -> Tensor | int:
        return self.count


class Continuing(nn.Module):
    def forward(self, x: Tensor, cache: Seen) -> Tensor:
        count = cache.get_seq_length()
        return x + (count.clone() if isinstance(count, Tensor) else count)


@pytest.mark.parametrize(("first", "other"), [(torch.tensor(2), 2), (2, torch.tensor(2))])
def test_whether_a_cache_counts_in_a_tensor_is_guarded(first: Tensor | int, other: Tensor | int) -> None:
    model, x = Continuing(), torch.randn(2, 3)
    graph = LocalTracer(model).trace(Continuing.forward, (x, Seen(first)), {})
    tidy(graph)
    _, run = emit(graph)
    assert torch.equal(run(model, x, Seen(first)), x + 2)
    with pytest.raises(GuardFailed):
        run(model, x, Seen(other))


class Quiet(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2


class Lowered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.inner(x)
        return x + y.float()


def test_a_change_of_modes_around_a_child_is_refused() -> None:
    with pytest.raises(LoweringError, match="Lowered changes autocast or gradient mode within its forward"):
        LocalTracer(Lowered()).trace(Lowered.forward, (torch.ones(1, 2),), {})


def test_a_change_of_gradient_mode_is_refused() -> None:
    with pytest.raises(LoweringError, match="Quiet changes autocast or gradient mode within its forward"):
        LocalTracer(Quiet()).trace(Quiet.forward, (torch.ones(2),), {})


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


def test_tracing_leaves_buffers_random_state_hooks_and_children_alone() -> None:
    module, fired = Counting().train(), []
    module.norm.register_forward_hook(lambda *_: fired.append(1))
    x = torch.randn(4, 3)
    before, state = module.norm.running_mean.clone(), torch.get_rng_state()
    LocalTracer(module).trace(Counting.forward, (x,), {})
    assert torch.equal(module.norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert fired == []
    assert all("_compiled_call_impl" not in child.__dict__ for child in module.modules())


class Remembering(nn.Module):
    """Keeps what it made of a size, as Swin's blocks keep their window's."""

    def forward(self, x: Tensor) -> Tensor:
        self.window = min(x.shape[0], 4)
        return x.narrow(0, 0, self.window)


def test_what_a_forward_keeps_on_its_module_is_plain() -> None:
    module = Remembering()
    for length in (2, 3):
        graph = LocalTracer(module).trace(Remembering.forward, (torch.ones(length),), {})
        assert type(module.window) is int
        tidy(graph)
        _, run = emit(graph)
        assert run(module, torch.ones(length)).shape == (length,)
