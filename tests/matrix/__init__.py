"""Every operation in every context, in every mode: see tests/README.md."""
