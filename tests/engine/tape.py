"""A stand-in for a CUDA graph: what a step did is recorded and done again, with the same memory and the same numbers.

As a graph it knows no Python: whatever the host decided while it was recorded stays decided. As a graph it cannot ask
the host for anything, nor take anything from it.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal", "_unique2", "masked_select")


class Tape(TorchDispatchMode):
    """Records operations, and forbids those that a graph could not hold."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ASKING, f"{name} asks the host, or takes from it"
        out = func(*args, **kwargs or {})
        self.done.append((func, args, kwargs or {}, out))
        return out

    def play(self):
        for func, args, kwargs, out in self.done:
            new = func(*args, **kwargs)
            for kept, made in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != made.data_ptr():
                    kept.copy_(made)


class Tapes:
    """In place of `CudaGraphs`.

    Attributes:
        recorded: how many steps were.
        played: how often one was repeated.
    """

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, step):
        step()  # as a warm-up
        self.recorded += 1
        with Tape() as tape:
            out = step()

        def replay():
            self.played += 1
            with torch.inference_mode(torch.is_inference(out)):
                tape.play()
            return out

        return replay
