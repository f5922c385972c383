"""Front end: file, sentence or dict to `Spec`, and back. Knows no model."""

from peft_compiler.spec.spec import Rule as Rule
from peft_compiler.spec.spec import Spec as Spec
from peft_compiler.spec.spec import Where as Where
