"""The kernels in C, compiled into one library without knowledge of Python or torch, and what loads it."""
