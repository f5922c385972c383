"""Spec and sites to `Plan`. Everything is decided here, and every problem is reported at once."""

from peft_compiler.planning.planner import make_plan as make_plan
