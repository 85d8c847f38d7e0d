"""A loop as one Triton kernel, on CUDA devices.

NOTE [Kernels on CUDA] Where lanes don't read one another, a program of the kernel takes a block of lanes, and runs
through all steps with its carries in registers: NOTE [Lanes]. What the body computes is found out as for CPUs, and on
tensors of the CPU, so no GPU is needed to make a kernel, and no choice of Inductor's depends on it; only the printer is
another. Other loops stay torch's own there: a step that takes several kernels is launched from outside anyway.

NOTE [Shared numbers] A carry or an output may be one number for all lanes: a counter, a time, a key of random numbers.
Each lane computes it for itself, so no lane reads another, and the first one of each program stores it. What it is
computed of must be shared too: a node of one element reads no lane, which the same look at indices proves. Counters are
mostly on the CPU; a number goes to the GPU with the launch, without waiting, and comes back only if it is returned.

``body``: what a lane computes, printed by Inductor's operators for Triton; ``values``: what it holds; ``systems``:
lanes of several numbers, and loops in loops; ``numbers``: random ones; ``around``: the loop around a step; ``extern``:
the call of a kernel in Inductor's code; ``operator``: the operator that carries the source; ``selects``: branches;
``tapes``: loops of unknown length that stack for their gradient; ``planning``: a loop as a kernel, or the reason why
not.
"""
