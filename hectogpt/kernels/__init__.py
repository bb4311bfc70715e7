"""Kernels in C++ for every processor, and what dtypes a device has."""
