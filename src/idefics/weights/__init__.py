"""Finds or downloads the folder of a model, and streams the tensors of its files into a module.

Importing this package does not import torch; `load` does.
"""

from idefics.weights.files import fingerprint_files, safetensors_files
from idefics.weights.hub import ProgressCallback, cache_folder, complete_cached_folder
from idefics.weights.key_rules import KeyRules
from idefics.weights.locate import find_checkpoint
from idefics.weights.streaming_loader import DeviceByModule, load

__all__ = [
    "KeyRules",
    "DeviceByModule",
    "ProgressCallback",
    "cache_folder",
    "complete_cached_folder",
    "find_checkpoint",
    "fingerprint_files",
    "load",
    "safetensors_files",
]
