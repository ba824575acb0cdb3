"""Triton kernels for one GPU iteration of N networks.

They are used where they are asked for, or once they have passed their trial.

Activations are (N, H, W, C), contiguous, in bf16 (or fp32). The image is a grid axis of every kernel, so each image
meets its own weights in a matrix product of its own. A tensor is written once, as its convolution's raw sums. The next
kernel applies normalisation and LeakyReLU when it loads it, and statistics are taken from the accumulators before they
leave the registers; the backward pass does likewise. The module ``engine`` composes the kernels into a whole network's
forward and backward pass, and ``iteration`` composes these into the iteration that ``reconstruct(backend="triton")``
replays.

Every kernel has been checked in Triton's interpreter on a CPU and compiles for sm_90. None has yet been run on a GPU,
and no time has been measured.

Triton is imported by this package's modules, never by the package itself.
"""
