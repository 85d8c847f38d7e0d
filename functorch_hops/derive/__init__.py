"""Graphs that rules derive from a captured body: batched, with tangents, split into forward and backward.

Each is captured once from the body's graph and kept on it (:meth:`Subgraph.derive`).
"""
