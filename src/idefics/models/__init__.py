"""The model families, and how a checkpoint becomes a module: `checkpoint` reads configs, `loading` builds and fills.

Idefics 1 is in `idefics1`; Idefics 2 and Idefics 3 (SmolVLM too) share `inline` and differ in their connectors.
"""

from idefics.models.checkpoint import (
    MODEL_REGISTRY,
    Checkpoint,
    family_for,
    quantization_config_dict,
    read_checkpoint,
)
from idefics.models.loading import WeightStorage, build_on_meta_device, load_weights, meta_device_without_init

__all__ = [
    "MODEL_REGISTRY",
    "Checkpoint",
    "WeightStorage",
    "build_on_meta_device",
    "family_for",
    "load_weights",
    "meta_device_without_init",
    "quantization_config_dict",
    "read_checkpoint",
]
