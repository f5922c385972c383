"""Files: what a compiled model has learnt, written and read back."""

from peft_compiler.interchange.fuse import fuse as fuse
from peft_compiler.interchange.load import load as load
from peft_compiler.interchange.save import save as save
