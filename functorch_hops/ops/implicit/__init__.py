"""``custom_root`` and ``custom_linear_solve``: custom rules that follow from an equation."""
