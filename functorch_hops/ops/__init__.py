"""The operators: one folder each, with the same files in all of them.

``api`` (trees, checks, plain eager), ``eager`` (the run and its abstract twin), ``batching``, ``jvp``, ``vjp``,
``lowering`` (to torch's own operators); ``__init__`` holds the registration table.
"""
