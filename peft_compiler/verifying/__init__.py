"""Proves the promises that every compiled model keeps."""

from peft_compiler.verifying.report import Finding as Finding
from peft_compiler.verifying.report import Report as Report
from peft_compiler.verifying.verify import verify as verify
