"""Keyword arguments of models' `from_pretrained` that need nothing done here, or that this package does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from idefics.compat.folders import IGNORED
from idefics.errors import BadSetting

_ONLY_SAFETENSORS = "only safetensors files are read"
_STREAMED = "weights are streamed in, one tensor at a time"
_NO_SHARDS = 'tensor parallelism is not here: device_map="auto" spreads layers'
_NO_KERNELS = "kernels are not downloaded from the hub"

# Accepted by `from_pretrained` of models and ignored, with the reason.
IGNORED_BY_MODELS: Mapping[str, str] = {
    **IGNORED,
    "low_cpu_mem_usage": _STREAMED,
    "offload_folder": _STREAMED,
    "offload_state_dict": _STREAMED,
    "offload_buffers": _STREAMED,
    "weights_only": _ONLY_SAFETENSORS,
    "tqdm_class": "huggingface_hub shows the progress",
    "_from_pipeline": "a note from one loader to the next",
    "adapter_kwargs": "adapters are loaded by `load_adapter` or peft",
}

# Keyword -> the values that ask for nothing, and why any other is refused.
NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "variant": ((None, ""), "files with a variant in their name are not read"),
    "gguf_file": ((None,), _ONLY_SAFETENSORS),
    "from_tf": ((None, False), _ONLY_SAFETENSORS),
    "from_flax": ((None, False), _ONLY_SAFETENSORS),
    "tp_plan": ((None,), _NO_SHARDS),
    "tp_size": ((None,), _NO_SHARDS),
    "device_mesh": ((None,), _NO_SHARDS),
    "distributed_config": ((None,), _NO_SHARDS),
    "use_kernels": ((None, False), _NO_KERNELS),
    "allow_all_kernels": ((None, False), _NO_KERNELS),
    "kernel_config": ((None,), _NO_KERNELS),
    "experts_implementation": ((None,), "these models have no experts"),
    "key_mapping": ((None, {}), "rename the weights in the file"),
    "state_dict": ((None,), "make the model by from_config, then call its load_state_dict"),
    "ignore_mismatched_sizes": ((None, False), "every weight must have the shape that config.json says"),
}


def without_neutral(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that are left when those with a value that asks for nothing are taken out.

    Args:
        call: the function that was called, for the message.
        given: its keyword arguments.

    Raises:
        BadSetting: one asks for something that this package does not have.
    """
    for name in given.keys() & NEUTRAL.keys():
        values, reason = NEUTRAL[name]
        if not any(given[name] is value or given[name] == value for value in values):
            raise BadSetting(f"{call}: {name} is {given[name]!r}; {reason}: leave it out")
    return {name: value for name, value in given.items() if name not in NEUTRAL}


@runtime_checkable
class Serializable(Protocol):
    """An object that gives its content as a dict: configs of this package and of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


def content_of(config: object) -> Mapping[str, Any] | None:
    """The content of a config object or of a mapping; None of anything else."""
    if isinstance(config, Serializable):
        return config.to_dict()
    return config if isinstance(config, Mapping) else None
