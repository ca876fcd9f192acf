"""Kernels in C for the CPU; torch's own operations are the oracle of each.

``layer`` runs a transformer layer in training, ``rqs`` the spline, ``step`` a token in sampling. A
machine without a C compiler uses torch's operations, with the same results in more time; each run
records which kernels it used.

Layout: the spline's kernel computes with features innermost: raw parameters as ``[P, n]``, one
contiguous plane per parameter. ``CausalTransformer`` therefore computes its head as (outputs ×
tokens), whose view ``[B, T, outputs]`` has the tokens innermost in memory. Parameters innermost, as
elsewhere, cost half as much time more: they are turned in the cache, a block of features at a time.
"""
