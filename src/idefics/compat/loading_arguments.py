"""Keyword arguments of models' `from_pretrained` that need nothing done here, or that this package does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from idefics.compat.pretrained_folder import IGNORED_KWARGS
from idefics.errors import BadSetting

_ONLY_SAFETENSORS_REASON = "only safetensors files are read"
_STREAMING_REASON = "weights are streamed in, one tensor at a time"
_NO_TENSOR_PARALLEL_REASON = 'tensor parallelism is not here: device_map="auto" spreads layers'
_NO_HUB_KERNELS_REASON = "kernels are not downloaded from the hub"

# Accepted by `from_pretrained` of models and ignored, with the reason.
IGNORED_MODEL_KWARGS: Mapping[str, str] = {
    **IGNORED_KWARGS,
    "low_cpu_mem_usage": _STREAMING_REASON,
    "offload_folder": _STREAMING_REASON,
    "offload_state_dict": _STREAMING_REASON,
    "offload_buffers": _STREAMING_REASON,
    "weights_only": _ONLY_SAFETENSORS_REASON,
    "tqdm_class": "huggingface_hub shows the progress",
    "_from_pipeline": "a note from one loader to the next",
    "adapter_kwargs": "adapters are loaded by `load_adapter` or peft",
}

# Keyword -> the values that ask for nothing, and why any other is refused.
NEUTRAL_MODEL_KWARGS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "variant": ((None, ""), "files with a variant in their name are not read"),
    "gguf_file": ((None,), _ONLY_SAFETENSORS_REASON),
    "from_tf": ((None, False), _ONLY_SAFETENSORS_REASON),
    "from_flax": ((None, False), _ONLY_SAFETENSORS_REASON),
    "tp_plan": ((None,), _NO_TENSOR_PARALLEL_REASON),
    "tp_size": ((None,), _NO_TENSOR_PARALLEL_REASON),
    "device_mesh": ((None,), _NO_TENSOR_PARALLEL_REASON),
    "distributed_config": ((None,), _NO_TENSOR_PARALLEL_REASON),
    "use_kernels": ((None, False), _NO_HUB_KERNELS_REASON),
    "allow_all_kernels": ((None, False), _NO_HUB_KERNELS_REASON),
    "kernel_config": ((None,), _NO_HUB_KERNELS_REASON),
    "experts_implementation": ((None,), "these models have no experts"),
    "key_mapping": ((None, {}), "rename the weights in the file"),
    "state_dict": ((None,), "make the model by from_config, then call its load_state_dict"),
    "ignore_mismatched_sizes": ((None, False), "every weight must have the shape that config.json says"),
}


def drop_neutral_model_kwargs(function_name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that are left when those with a value that asks for nothing are taken out.

    Args:
        function_name: the function that was called, for the message.
        kwargs: its keyword arguments.

    Raises:
        BadSetting: one asks for something that this package does not have.
    """
    for name in kwargs.keys() & NEUTRAL_MODEL_KWARGS.keys():
        values, reason = NEUTRAL_MODEL_KWARGS[name]
        if not any(kwargs[name] is value or kwargs[name] == value for value in values):
            raise BadSetting(f"{function_name}: {name} is {kwargs[name]!r}; {reason}: leave it out")
    return {name: value for name, value in kwargs.items() if name not in NEUTRAL_MODEL_KWARGS}


@runtime_checkable
class HasToDict(Protocol):
    """An object that gives its content as a dict: configs of this package and of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


def config_to_dict(config: object) -> Mapping[str, Any] | None:
    """The content of a config object or of a mapping; None of anything else."""
    if isinstance(config, HasToDict):
        return config.to_dict()
    return config if isinstance(config, Mapping) else None
