"""Random programs: generated from a seed, run in every mode, compared with plain Python, shrunk when they differ."""
