"""What ``scan`` lends to the loops that are built on it or like it."""
