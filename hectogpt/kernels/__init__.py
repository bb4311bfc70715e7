"""C++ kernels for CPUs, and the dtypes in which a device is fast."""
