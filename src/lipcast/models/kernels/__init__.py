"""Operations between the matrix products, each as one function with two implementations.

`plain.Kernels` computes them with PyTorch's own operators; `fused.FusedKernels` has the same methods
and passes over the memory once per operation, in Triton. `choose` picks one when a model is loaded.
"""
