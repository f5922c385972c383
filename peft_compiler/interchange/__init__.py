"""Reading: what was saved comes back onto its base, or into another compiled model."""

from peft_compiler.interchange.fuse import fuse as fuse
from peft_compiler.interchange.load import load as load
