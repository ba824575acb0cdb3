"""Small C++ kernels for CPUs, compiled at run time where a compiler is there, and used once they have proven right."""
