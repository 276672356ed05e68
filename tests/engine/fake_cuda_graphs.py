"""A stand-in for a CUDA graph: the operations of a step are recorded and replayed on the same memory.

As a graph it knows no Python: whatever the host decided while it was recorded stays decided. As a graph it cannot ask
the host for anything, nor take anything from it.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_SYNC_OPERATIONS = (
    "_local_scalar_dense",
    "nonzero",
    "lift_fresh",
    "is_nonzero",
    "equal",
    "_unique2",
    "masked_select",
)


class OperationRecorder(TorchDispatchMode):
    """Records operations, and forbids those that a graph could not hold."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in HOST_SYNC_OPERATIONS, f"{name} asks the host, or takes from it"
        out = func(*args, **kwargs or {})
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.operations:
            new = func(*args, **kwargs)
            for old_tensor, new_tensor in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(old_tensor, Tensor) and old_tensor.data_ptr() != new_tensor.data_ptr():
                    old_tensor.copy_(new_tensor)


class FakeCudaGraphs:
    """In place of `CudaGraphRecorder`.

    Attributes:
        num_recorded: how many steps were.
        num_replayed: how often one was repeated.
    """

    def __init__(self):
        self.num_recorded = self.num_replayed = 0

    def __call__(self, step):
        step()  # as a warm-up
        self.num_recorded += 1
        with OperationRecorder() as tape:
            out = step()

        def replay():
            self.num_replayed += 1
            with torch.inference_mode(torch.is_inference(out)):
                tape.replay()
            return out

        return replay
