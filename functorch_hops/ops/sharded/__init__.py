"""Scans over a sequence whose parts lie on the ranks of a process group, one after the other."""
