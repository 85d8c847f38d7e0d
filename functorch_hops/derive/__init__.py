"""Graphs made from graphs: batched, with tangents, split into forward and backward."""
