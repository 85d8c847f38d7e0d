"""A loop as one kernel: of C++, or on CUDA devices of Triton (``triton``).

NOTE [Kernels of loops] Torch's own loops launch kernels at every step. Here the body of a loop becomes a C++ function,
lowered, fused and printed by Inductor, and the loop around it some lines of C++; the whole is one operator of the graph
that carries its source. What can't be had so raises ``Refused`` with the reason, before anything is traced around the
loop, and the loop takes the native path.

``forms``: what a loop is, whoever made it. ``planning``: each loop of a graph as a kernel, or the reason why not;
``plans``: what became of each.
``body``: a body as a function, ``lanes``: the same for a block of lanes, ``lane_blocks``: how to cut it,
``late``: numbers of all lanes, reduced after the loop, ``in_place``: carries of which a step writes to a part,
``systems``: lanes of several numbers, ``lane_steps``, ``unrolled`` and ``lane_rows``: their steps,
numbers and places, ``masked``: whiles under vmap, ``around``: the loop around a body, ``sinking`` and ``stacks``: what
makes the rows of a loop, and where they lie, ``tapes`` and ``tape_values``: loops of unknown length that save for
their gradient,
``vector_math``: the functions that kernels call,
``sizes``: sizes in C++, ``graph_sizes``: the open ones in a graph; ``drawing``: random numbers;
``whole``: a graph with what is around its loops as one kernel, ``kept``: the same from disk, ``probing``: what
Inductor asks each process, asked once;
``source``: the C++ that all kernels share, ``libraries``: kernels compiled together;
``operator`` and ``extern``: the operator, and how Inductor runs it.
``watching``: who is told where a loop is.
``own``: operators that Inductor makes no C++ of; ``rewritten``: operators that are others inside a loop;
``products``; ``convolution``; ``linear``: solves and factorizations of small matrices; ``lapack``: their eigenvalues
and singular values;
``ordering``: sorts, running sums and searches.
"""
