"""Devices that this machine does not have: tensors lie in CPU memory and only say that they are elsewhere.

What is computed is real, so results can be compared. But tensors that say different things cannot meet, as on real
devices: only a single number that lies on the CPU goes with any, and an index that does.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


def place_on(tensor, device):
    """The tensor, which says from now on that it lies on `device`."""
    tensor.lies = device
    return tensor


def fake_device_of(tensor):
    return vars(tensor).get("lies", CPU)


class FakeDevices(TorchFunctionMode):
    """While it lasts, tensors know where they lie."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return fake_device_of(args[0])
        kwargs = kwargs or {}
        devices = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        args = tuple(x for x in args if not isinstance(x, torch.device))
        kwargs = {name: value for name, value in kwargs.items() if not isinstance(value, torch.device)}
        if func == Tensor.to and devices:
            [device] = devices
            if fake_device_of(args[0]) == device and len(args) == 1:
                return args[0]
            return place_on(func(*args, **kwargs).clone(), device)
        argument_devices = self.devices_of_arguments(func, args, kwargs)
        assert len(argument_devices) <= 1, f"{func.__name__} was given tensors on {argument_devices}"
        device = (devices or list(argument_devices) or [CPU])[0]
        return tree_map_only(Tensor, lambda x: place_on(x, device), func(*args, **kwargs))

    def devices_of_arguments(self, func, args, kwargs):
        """Where the tensors lie that must lie together."""
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            indexed, index, *values = args
            index_devices = {fake_device_of(x) for x in tree_leaves(index) if isinstance(x, Tensor)} - {CPU}
            return (
                index_devices
                | {fake_device_of(indexed)}
                | {fake_device_of(x) for x in values if isinstance(x, Tensor) and x.dim()}
            )
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        tensor_devices = {fake_device_of(x) for x in tensors if x.dim()}
        return tensor_devices or {fake_device_of(x) for x in tensors}
