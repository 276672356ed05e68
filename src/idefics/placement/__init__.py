"""Places the modules of a model on devices, and moves their inputs there.

`devices` checks the caller's arguments and compares needed and free memory; `assignment` turns the arguments into a
device for each module, and moves tensors between devices while the model runs.
"""

from idefics.placement.assignment import assign_devices, install_device_hooks, named_no_split_modules
from idefics.placement.devices import (
    DeviceLike,
    DeviceMap,
    DeviceMapStrategy,
    allocation_errors_as_out_of_memory,
    first_accelerator_or_cpu,
    free_memory,
    get_available_device,
    resolve_device,
    weight_bytes,
)

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
