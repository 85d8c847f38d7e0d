"""Tools for the user: what was captured and how it is compiled, and a look into captured loops."""
