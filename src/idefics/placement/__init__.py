"""Places the modules of a model on devices, and moves their inputs there.

`devices` checks the caller's arguments, `assignment` turns them into a device for each module, `hooks` moves tensors
between devices while the model runs, and `memory` compares needed and free memory.
"""

from idefics.placement.assignment import assign_devices, named_no_split_modules
from idefics.placement.devices import (
    DeviceLike,
    DeviceMap,
    DeviceMapStrategy,
    first_accelerator_or_cpu,
    get_available_device,
    resolve_device,
)
from idefics.placement.hooks import install_device_hooks
from idefics.placement.memory import allocation_errors_as_out_of_memory, free_memory, weight_bytes

__all__ = [
    "DeviceLike",
    "DeviceMap",
    "DeviceMapStrategy",
    "assign_devices",
    "free_memory",
    "get_available_device",
    "install_device_hooks",
    "first_accelerator_or_cpu",
    "named_no_split_modules",
    "allocation_errors_as_out_of_memory",
    "resolve_device",
    "weight_bytes",
]
