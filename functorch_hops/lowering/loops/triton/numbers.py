"""Random numbers by count in Triton: those of the kernels on CPUs (NOTE [Numbers by count])."""

from __future__ import annotations

import textwrap

__all__ = ["DRAWN", "NUMBERS"]

DRAWN = "philox_"
"""How the names of the functions that draw begin."""

NUMBERS = textwrap.dedent("""\
    @triton.jit
    def philox_bits(key, count):
        count = count.to(tl.uint64)
        low, high = (count & 0xFFFFFFFF).to(tl.uint32), (count >> 32).to(tl.uint32)
        first, second, _, _ = tl.philox(key, low, high, low * 0, low * 0)
        return first, second


    @triton.jit
    def philox_uniform(key, count):
        first, _ = philox_bits(key, count)
        return (first >> 8).to(tl.float32) * 5.9604644775390625e-08


    @triton.jit
    def philox_normal(key, count):
        first, second = philox_bits(key, count)
        u1 = 1.0 - (first & 0x7FFFFFFF).to(tl.float32) * 4.6566127342e-10
        u2 = 1.0 - (second & 0x7FFFFFFF).to(tl.float32) * 4.6566127342e-10
        return tl.sqrt_rn(-2.0 * libdevice.log(u1)) * libdevice.cospi(2.0 * u2)


    @triton.jit
    def philox_integer(key, count, low, high):
        first, second = philox_bits(key, count)
        bits = (first.to(tl.uint64) << 32) | second.to(tl.uint64)
        return low + (bits % (high - low).to(tl.uint64)).to(tl.int64)
""")
