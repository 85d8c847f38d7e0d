"""``map``: a scan that carries nothing."""
