"""Finds or downloads the folder of a model, and streams the tensors of its files into a module.

Importing this package does not import torch; `load` does.
"""

from idefics.weights.adapter_config import read_adapter_config
from idefics.weights.adapter_files import check_base_model, find_adapter, fingerprint_adapter
from idefics.weights.files import digest_files, fingerprint_files, safetensors_files
from idefics.weights.hub_files import ProgressCallback, cache_folder
from idefics.weights.key_rules import KeyRules
from idefics.weights.locate import complete_cached_folder, find_checkpoint
from idefics.weights.streaming_loader import DeviceByModule, load

__all__ = [
    "KeyRules",
    "DeviceByModule",
    "ProgressCallback",
    "cache_folder",
    "check_base_model",
    "complete_cached_folder",
    "find_adapter",
    "find_checkpoint",
    "fingerprint_adapter",
    "digest_files",
    "fingerprint_files",
    "load",
    "read_adapter_config",
    "safetensors_files",
]
