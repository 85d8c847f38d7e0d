"""``fori_loop``: a scan, or a while loop."""
