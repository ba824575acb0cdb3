"""Triton kernels for one GPU iteration of N networks: used where asked for, or once they have passed their trial.

Activations are (N, H, W, C), contiguous, in bf16 (or fp32); the image is a grid axis of every kernel, so that each
image meets its own weights in a matrix product of its own. A tensor is written once, as its convolution's raw sums:
normalisation and LeakyReLU happen when the next kernel loads it, statistics are taken from the accumulators before
they leave the registers, and likewise backwards. The module ``engine`` strings the kernels together to a whole
network's forward and backward pass, and ``iteration`` those to the iteration that ``reconstruct(backend="triton")``
replays.

Every kernel has been checked in Triton's interpreter on a CPU and compiles for sm_90. None has yet been run on a GPU,
and no time has been measured.

Triton is imported by this package's modules, never by the package itself.
"""
