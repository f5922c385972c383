"""What `peft-compiler demo` runs: real weights and real text that come inside packages."""
