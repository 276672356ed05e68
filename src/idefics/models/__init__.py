"""The model families, and how a checkpoint becomes a module: `checkpoint`.

Idefics 1 is in `idefics1`; Idefics 2 and Idefics 3 (SmolVLM too) differ in their connectors only.
"""

from idefics.models.checkpoint import (
    MODEL_REGISTRY,
    Checkpoint,
    WeightStorage,
    build_on_meta_device,
    count_parameters,
    family_for,
    family_of_class,
    load_weights,
    meta_device_without_init,
    quantization_config_dict,
    read_checkpoint,
)

__all__ = [
    "MODEL_REGISTRY",
    "Checkpoint",
    "WeightStorage",
    "build_on_meta_device",
    "count_parameters",
    "family_for",
    "family_of_class",
    "load_weights",
    "meta_device_without_init",
    "quantization_config_dict",
    "read_checkpoint",
]
