"""Trained modules that insertions hold in common."""

from collections.abc import Hashable

from torch import nn


class Shared(nn.Module):
    """A part of an inserted module that every insertion of a rule may hold.

    Of those that are `alike`, a compiled model keeps one for each rule: it is counted, trained
    and saved once. A method that builds some says so in `shared_counts`.
    """

    alike: Hashable
    """Equal for those that are to be one and the same."""
