"""A loop as one Triton kernel, on CUDA devices.

NOTE [Kernels on CUDA] Where lanes don't read one another, a program of the kernel takes a block of lanes, and runs
through all steps with its carries in registers: NOTE [Lanes]. What the body computes is found out as for CPUs, and on
tensors of the CPU, so no GPU is needed to make a kernel, and no choice of Inductor's depends on it; only the printer is
another. Other loops stay torch's own there: a step that takes several kernels is launched from outside anyway.

``body``: what a lane computes, printed by Inductor's operators for Triton; ``around``: the loop around it;
``operator``: the operator that carries the source; ``planning``: a loop as a kernel, or the reason why not.
"""
