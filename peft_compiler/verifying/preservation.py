"""Promises that the function stays the same: in copies, files, other dtypes, merged, and step by step."""

import copy
import io
import tempfile
from collections import Counter
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.copies import copied
from peft_compiler.interchange import load
from peft_compiler.merging import merge
from peft_compiler.methods import NoMerge
from peft_compiler.saving import save
from peft_compiler.site import Projection
from peft_compiler.verifying.incremental import incremental_outputs
from peft_compiler.verifying.outputs import distance, equal, run, tolerance
from peft_compiler.verifying.subject import BrokenPromiseError, Subject


def saving_and_loading(subject: Subject) -> str:
    """Saves, loads onto the base, and compares outputs bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        save(subject.moved, Path(folder) / "adapter")
        loaded = load(subject.base, Path(folder) / "adapter", dict(subject.compilation.example_inputs))
    return _same(subject, loaded)


def deep_copies(subject: Subject) -> str:
    """Copies everything, the base's weights too."""
    return _same(subject, copy.deepcopy(subject.moved))


def pickling(subject: Subject) -> str:
    """Writes and reads the whole model as torch.save does, if the base can be."""
    file = io.BytesIO()
    try:
        torch.save(subject.base, io.BytesIO())
    except Exception as error:  # parametrized weights and functions made at run time have no pickle
        return f"the base itself cannot be pickled ({type(error).__name__})"
    torch.save(subject.moved, file)
    file.seek(0)
    return _same(subject, torch.load(file, weights_only=False))


def another_dtype(subject: Subject) -> str:
    """Runs in float64, where rounding may differ from the given dtype as much as it does for the base."""
    inputs = {name: _doubled(value) for name, value in subject.inputs.items()}
    before = run(subject.base, subject.inputs)
    try:
        base = run(copied(subject.base, {}).double(), inputs)
    except Exception as error:  # whatever a model may raise that was not made for it
        return f"the base itself does not run in float64 ({type(error).__name__})"
    if distance(base, before) == inf:
        return "the base itself does not give the same in float64"
    moved = run(copy.deepcopy(subject.moved).double(), inputs)
    return _close(subject, moved, 4 * distance(base, before))


def another_device(subject: Subject) -> str:
    """Runs on the accelerator, or back on the CPU."""
    here = next(subject.tuned.parameters()).device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = torch.device("cpu") if here.type != "cpu" else accelerator
    if there is None:
        return "no other device here to move to"
    inputs = {name: v.to(there) if isinstance(v, Tensor) else v for name, v in subject.inputs.items()}
    outputs = [tensor.to(here) for tensor in run(copy.deepcopy(subject.moved).to(there), inputs)]
    return f"{there}: {_close(subject, outputs, 0.0)}"


def merging(subject: Subject) -> str:
    """Merges, untying where weights are shared, and compares outputs."""
    without = Counter(
        f"{insertion.method.kind}: {rule.because}"
        for insertion in subject.compilation.plan.insertions
        if isinstance(rule := insertion.method.merge_rule(insertion.site), NoMerge)
    )
    if without:
        return "not promised: " + "; ".join(f"{count} {reason}" for reason, count in without.items())
    places = [insertion.site.place for insertion in subject.compilation.plan.insertions]
    if any(isinstance(place, Projection) and place.quantised for place in places):
        # Its layers may round what flows in too, or compute in fewer digits: there is no bound to hold.
        return "not promised: the base is quantised, and merging gives weights without codes"
    return _close(subject, run(merge(subject.moved, untie=True), subject.inputs), 0.0)


def decoding_step_by_step(subject: Subject) -> str:
    """Feeds a sequence to a cache in steps and compares with the outputs of the whole."""
    methods = (insertion.method for insertion in subject.compilation.plan.insertions)
    apart_by_design = sorted({method.kind for method in methods if not method.decodes_in_steps()})
    if apart_by_design:
        return f"not promised by the settings of {', '.join(apart_by_design)}"
    try:
        bases = incremental_outputs(subject.base, subject.inputs)
    except Exception as error:  # a cache that has no place for some layer, images cut in two
        return f"the base itself does not decode this example in steps ({type(error).__name__})"
    ours = incremental_outputs(subject.moved, subject.inputs)
    if ours is None or bases is None:
        return "no cache to decode with"
    apart, bases_apart = distance(*ours), distance(*bases)
    if apart > max(tolerance(ours[1]), 4 * bases_apart):
        raise BrokenPromiseError(f"{apart:.1e} from the whole sequence's, the base {bases_apart:.1e}")
    return f"{apart:.1e} from the whole sequence's"


def _same(subject: Subject, other: nn.Module) -> str:
    if not equal(run(other, subject.inputs), run(subject.moved, subject.inputs)):
        raise BrokenPromiseError("outputs differ")
    return "outputs equal bit for bit"


def _close(subject: Subject, outputs: list[Tensor], allowed: float) -> str:
    expected = run(subject.moved, subject.inputs)
    apart = distance(outputs, expected)
    if not apart <= max(tolerance(expected), allowed):
        raise BrokenPromiseError(f"outputs differ by {apart:.1e}")
    return f"outputs {apart:.1e} apart"


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
