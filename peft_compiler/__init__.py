"""Parameter-efficient fine-tuning as a compiler: the public names, nothing else.

>>> import peft_compiler as pc
>>> pc.Role.QUERY.value
'attention.query'

A name is loaded when it is first used, so that importing the package does not import torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_compiler.allocating import RankAllocator as RankAllocator
    from peft_compiler.allocating import ranks_of as ranks_of
    from peft_compiler.analysis.find_sites import find_sites as find_sites
    from peft_compiler.compiling import compile as compile
    from peft_compiler.compiling import plan as plan
    from peft_compiler.errors import CaptureError as CaptureError
    from peft_compiler.errors import InterchangeError as InterchangeError
    from peft_compiler.errors import LoweringError as LoweringError
    from peft_compiler.errors import MergeError as MergeError
    from peft_compiler.errors import MethodError as MethodError
    from peft_compiler.errors import PeftCompilerError as PeftCompilerError
    from peft_compiler.errors import PlanError as PlanError
    from peft_compiler.errors import SpecError as SpecError
    from peft_compiler.estimating import Estimate as Estimate
    from peft_compiler.estimating import estimate as estimate
    from peft_compiler.interchange import fuse as fuse
    from peft_compiler.interchange import load as load
    from peft_compiler.lowering.lower import reference_of as reference_of
    from peft_compiler.merging import merge as merge
    from peft_compiler.optimising import parameter_groups as parameter_groups
    from peft_compiler.plan import Plan as Plan
    from peft_compiler.registering import register as register
    from peft_compiler.saving import checkpoint as checkpoint
    from peft_compiler.saving import save as save
    from peft_compiler.saving import save_insertions_only as save_insertions_only
    from peft_compiler.site import Role as Role
    from peft_compiler.site import Site as Site
    from peft_compiler.spec import Spec as Spec
    from peft_compiler.templates import template_ids as template_ids
    from peft_compiler.verifying import Report as Report
    from peft_compiler.verifying import verify as verify

_HOME_OF = {
    "CaptureError": "errors",
    "Estimate": "estimating",
    "InterchangeError": "errors",
    "LoweringError": "errors",
    "MergeError": "errors",
    "MethodError": "errors",
    "PeftCompilerError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "RankAllocator": "allocating",
    "Report": "verifying",
    "Role": "site",
    "Site": "site",
    "Spec": "spec",
    "SpecError": "errors",
    "checkpoint": "saving",
    "compile": "compiling",
    "estimate": "estimating",
    "find_sites": "analysis.find_sites",
    "fuse": "interchange",
    "load": "interchange",
    "merge": "merging",
    "parameter_groups": "optimising",
    "plan": "compiling",
    "ranks_of": "allocating",
    "reference_of": "lowering.lower",
    "register": "registering",
    "save": "saving",
    "save_insertions_only": "saving",
    "template_ids": "templates",
    "verify": "verifying",
}
"""The module that each public name comes from."""

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll] - the names are those imported above


class _Package(ModuleType):
    """A package whose public names win over its modules of the same name: `plan` is both."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
