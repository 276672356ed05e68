"""On which device each part of a model lies, and how its inputs get there.

`devices` reads what the caller asks for, `assignment` turns it into a device for each module, `hooks` moves tensors
between devices while the model runs, and `memory` says whether it fits.
"""

from idefics.placement.assignment import assign_devices, no_split_blocks
from idefics.placement.devices import (
    DeviceLike,
    DeviceMap,
    DeviceMapStrategy,
    get_device,
    main_device_of,
    resolve_device,
)
from idefics.placement.hooks import install_device_hooks
from idefics.placement.memory import free_memory, raise_out_of_memory, weight_bytes

__all__ = [
    "DeviceLike",
    "DeviceMap",
    "DeviceMapStrategy",
    "assign_devices",
    "free_memory",
    "get_device",
    "install_device_hooks",
    "main_device_of",
    "no_split_blocks",
    "raise_out_of_memory",
    "resolve_device",
    "weight_bytes",
]
