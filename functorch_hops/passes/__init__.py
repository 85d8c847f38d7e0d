"""Passes over a captured graph and, through the rules of its operators, over their bodies."""
