"""C++ kernels for CPUs, compiled at run time and checked before they are used.

In fp32, and in bf16 on processors that multiply pairs of its numbers and have no tiles for it (AVX-512 BF16, not AMX),
they do whole iterations (``iteration``): every image's noise, network, gradients and Adam, with no operator of torch in
between. Elsewhere in bf16, and with more than 16 skip channels, they compute what lies between torch's convolutions:
fresh noise, normalisation with LeakyReLU, the last layer with the loss, and a convolution of few channels.

The first use compiles them, in eight seconds of an idle core, with the compiler of ``CXX``, or else g++, c++ or
clang++ (``build``). The library is kept in ``dipdefense`` in ``XDG_CACHE_HOME`` (by default ``~/.cache``); where that
cannot be written, each process compiles its own. Each process compares every kernel with torch's operators on small
tensors before it relies on them (``proof``). Where any of this fails, ``backend="native"`` is refused, and
``dipdefense.checks.explain`` says why. ``DIPDEFENSE_NATIVE=0`` in the environment switches the kernels off.
"""
