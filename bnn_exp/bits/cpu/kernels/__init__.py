"""The kernels of `bnn_exp.bits.cpu`, which numba compiles to machine code for the processor at hand.

`compiler` holds the decorators that compile a kernel and cache its machine code. `llvm`, `vectors_64`, `vectors_16` and
`vectors_digits` hold intrinsics: single instructions on vectors. Every other file holds the kernels of one task.

Most kernels take addresses and sizes instead of arrays, since numba takes longer to inspect eight arrays than such a kernel
takes for a layer of 1024² bits. A kernel checks nothing: its caller guarantees shapes, dtypes and contiguous memory.
"""
