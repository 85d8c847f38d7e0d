"""Python function -> Subgraph."""
