"""From captured graphs to code that runs."""
