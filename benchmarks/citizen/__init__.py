"""Methods by features of PyTorch and transformers: every cell is run, on small models with random weights."""

from collections.abc import Mapping
from types import ModuleType

from benchmarks.citizen import compiled, copies, devices, frozen, generation, quantised, training

AREAS: Mapping[str, ModuleType] = {
    "Generation": generation,
    "torch.compile and torch.export": compiled,
    "Copies and threads": copies,
    "Frozen": frozen,
    "Training and checkpoints": training,
    "Quantised bases": quantised,
    "Two processes": devices,
}
"""A module of features for each table of the page."""
