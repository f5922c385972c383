"""What stays in one mode, train or eval, whatever its model is put in."""

from torch import nn

from peft_compiler.plan import is_inserted
from peft_compiler.quantised import packed_in


def keep_modes(root: nn.Module) -> None:
    """Sets the mode of what could not keep its values in the other one.

    Normalisations of the base stay in eval mode: in train mode their running statistics would move.
    Linears that keep codes stay in train mode: in eval mode some lay their codes out anew, in place,
    round their scales, and give no gradient from then on.
    """
    for name, module in root.named_modules():
        if is_inserted(name):
            continue
        if getattr(module, "track_running_stats", False):
            module.training = False
        elif packed_in(module):
            module.training = True
