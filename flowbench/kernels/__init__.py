"""What is worth writing by hand for the CPU, in C; torch's own operations are the oracle of each.

A program without a C compiler does without, with the same results. The environment variable
FLOWBENCH_NATIVE=0 leaves the kernels out.
"""
