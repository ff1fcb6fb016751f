"""Triton kernels without a GPU: rendered by Inductor for a device that is not there, compiled to its machine code, and
run by Triton's interpreter on CPU tensors.

    device       pretends that there is a GPU; no kernel is loaded
    rendering    compiles a program for it: traced on CPU, moved to the GPU as a graph
    interpreter  runs what was rendered on CPU tensors (TRITON_INTERPRET=1, in a process of its own)
    machine      registers, spills, shared memory, and instructions of a compiled kernel

What only a GPU can tell: speed, races, the order of memory operations, what lies behind the end of a tensor.
"""
