"""The contract of methods, to be run on a user's own as on the package's; needs no test framework."""

from peft_compiler.testing.checks import Check as Check
from peft_compiler.testing.checks import assert_keeps_contract as assert_keeps_contract
from peft_compiler.testing.checks import contract as contract
from peft_compiler.testing.decoder import small_decoder as small_decoder
