"""Which model types of the installed transformers a spec works on: `python -m benchmarks.coverage`."""
