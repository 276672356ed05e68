"""C kernels, compiled into one library that depends on neither Python nor torch, and the code that loads it."""
