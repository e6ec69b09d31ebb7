"""The static form as Triton kernels."""
