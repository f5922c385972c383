"""Files and states: what a compiled model has learnt, taken out of it and put back."""

from peft_compiler.saving.accelerator import save_insertions_only as save_insertions_only
from peft_compiler.saving.checkpoint import checkpoint as checkpoint
from peft_compiler.saving.save import save as save
