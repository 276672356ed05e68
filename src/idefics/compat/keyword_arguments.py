"""Keyword arguments of transformers that change nothing here, and those that this package does not have.

Ignored arguments are dropped, whatever their value. Neutral arguments are accepted at the values that ask for nothing;
any other value is refused, with the reason. Calls of processors also take arguments in groups, and settings of videos.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from idefics.config import VideoProcessorConfig
from idefics.errors import BadSetting, UnknownArgument

NeutralKwargs = Mapping[str, str]  # name -> why other values than neutral ones are refused

_ONLY_SAFETENSORS = "only safetensors files are read"
_NO_TENSOR_PARALLEL = 'tensor parallelism is not supported: device_map="auto" spreads layers'
_NO_HUB_KERNELS = "kernels are not downloaded from the hub"
_NOT_SUPPORTED = "this package does not have it"

# What asks for nothing: the values that all neutral arguments are accepted at, and those of some.
_NEUTRAL_VALUES: tuple[Any, ...] = (None, False, "", {})
_NEUTRAL_VALUES_BY_NAME: Mapping[str, tuple[Any, ...]] = {
    "do_sample_frames": (None, False, True),
    "logits_to_keep": (None, 0, 1),
    "return_dict": (None, True),
    "use_safetensors": (None, True),
    "verbose": (None, False, True),
    "video_load_backend": (None, "pyav", "decord", "opencv", "torchcodec", "torchvision"),
}

# Ignored by every `from_pretrained`.
IGNORED_KWARGS = (
    # Passed on between the loading functions of transformers.
    "_commit_hash",
    "_from_auto",
    "from_auto",
    # No code of a checkpoint is ever run.
    "code_revision",
    "trust_remote_code",
    "force_download",  # the files of a revision never change; a broken one is downloaded again anyway
    "mirror",  # HF_ENDPOINT names another hub
    "proxies",  # the hub's client reads HTTPS_PROXY
    "resume_download",  # a download always continues where it stopped
    "user_agent",  # it changes only what the hub logs
)
# Ignored by processors, image processors and tokenizers.
IGNORED_PROCESSOR_KWARGS = (
    *IGNORED_KWARGS,
    # A processor has no attention and no weights.
    "_attn_implementation",
    "attn_implementation",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "torch_dtype",
    "use_safetensors",
    "backend",  # there is one implementation
    "from_slow",  # tokenizer.json is always read
    "legacy",  # tokenizer.json says how text is split
    "use_fast",  # there is one implementation: the tokenizers library, and Pillow's resizing
)
# Ignored by models and configs.
IGNORED_MODEL_KWARGS = (
    *IGNORED_KWARGS,
    # Weights are streamed in, one tensor at a time.
    "low_cpu_mem_usage",
    "offload_folder",
    "offload_state_dict",
    "offload_buffers",
    "weights_only",  # only safetensors files are read
    "tqdm_class",  # huggingface_hub shows the progress
    "_from_pipeline",  # passed on between the loading functions of transformers
    "adapter_kwargs",  # adapters are loaded by `load_adapter` or peft
)
NEUTRAL_MODEL_KWARGS: NeutralKwargs = {
    "variant": "files with a variant in their name are not read",
    "gguf_file": _ONLY_SAFETENSORS,
    "use_safetensors": _ONLY_SAFETENSORS,
    "from_tf": _ONLY_SAFETENSORS,
    "from_flax": _ONLY_SAFETENSORS,
    "tp_plan": _NO_TENSOR_PARALLEL,
    "tp_size": _NO_TENSOR_PARALLEL,
    "device_mesh": _NO_TENSOR_PARALLEL,
    "distributed_config": _NO_TENSOR_PARALLEL,
    "use_kernels": _NO_HUB_KERNELS,
    "allow_all_kernels": _NO_HUB_KERNELS,
    "kernel_config": _NO_HUB_KERNELS,
    "experts_implementation": "these models have no experts",
    "key_mapping": "rename the weights in the file",
    "state_dict": "build the model with from_config, then call its load_state_dict",
    "ignore_mismatched_sizes": "every weight must have the shape that config.json says",
}
# Of the call of a tokenizer, and of a processor.
NEUTRAL_TOKENIZER_KWARGS: NeutralKwargs = dict.fromkeys(
    (
        "is_split_into_words",
        "return_mm_token_type_ids",
        "return_overflowing_tokens",
        "return_text_replacement_offsets",
        "split_special_tokens",
        "stride",
        "text_pair_target",
        "text_target",
        "verbose",
    ),
    _NOT_SUPPORTED,
)
NEUTRAL_PROCESSOR_KWARGS: NeutralKwargs = dict.fromkeys(
    (
        *NEUTRAL_TOKENIZER_KWARGS,
        "audio",
        "do_sample_frames",
        "load_audio_from_video",
        "return_metadata",
        "return_token_type_ids",
        "video_load_backend",
        "video_metadata",
    ),
    _NOT_SUPPORTED,
)
# Ignored by the constructors and calls of image processors.
IGNORED_IMAGE_KWARGS = (
    "data_format",  # frames are (3, height, width)
    "default_to_square",  # `size` names both edges
    "device",  # pixels are computed on the CPU
    "disable_grouping",  # images are processed one by one
    "padding_value",  # images are padded with zeros
    "return_tensors",  # an argument of the call
)
# Ignored by `save_pretrained`, except that `push_to_hub=True` is refused.
IGNORED_SAVE_KWARGS = (
    "commit_message",
    "private",
    "push_to_hub",
    "repo_id",
    "revision",
    "save_function",
    "save_peft_format",
    "token",
    "variant",
)
# Dicts of keyword arguments; later groups have priority.
KWARG_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
# Argument -> field of `VideoProcessorConfig`.
VIDEO_FIELD_BY_KWARG = {
    "fps": "fps",
    "target_fps": "fps",
    "max_frames": "max_frames",
    "num_frames": "max_frames",
    "skip_secs": "skip_seconds",
}

CallT = TypeVar("CallT", bound=Callable[..., Any])


def split_kwargs(kwargs: Mapping[str, Any], names: Container[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits keyword arguments into those with some names and the others."""
    named = {name: value for name, value in kwargs.items() if name in names}
    return named, {name: value for name, value in kwargs.items() if name not in names}


def check_and_drop_neutral_kwargs(
    function_name: str, kwargs: Mapping[str, Any], neutral: NeutralKwargs
) -> dict[str, Any]:
    """Checks the keyword arguments that are accepted at some values only, and returns the others.

    Args:
        function_name: the function that was called, for the message.
        neutral: name of such an argument -> why this package has no other value.

    Raises:
        BadSetting: one of `neutral` has a value that asks for something.
    """
    for name in kwargs.keys() & neutral.keys():
        if kwargs[name] not in _NEUTRAL_VALUES_BY_NAME.get(name, _NEUTRAL_VALUES):
            raise BadSetting(f"{function_name}: {name} is {kwargs[name]!r}; {neutral[name]}: leave it out")
    return split_kwargs(kwargs, neutral)[1]


def check_save_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Refuses further keyword arguments of `save_pretrained` that are unknown or ask for an upload.

    Raises:
        UnknownArgument: `save_pretrained` has no such argument.
        BadSetting: `push_to_hub` is true.
    """
    if unknown := sorted(kwargs.keys() - set(IGNORED_SAVE_KWARGS)):
        raise UnknownArgument("save_pretrained", unknown, IGNORED_SAVE_KWARGS)
    if kwargs.get("push_to_hub"):
        raise BadSetting("push_to_hub is True; nothing is uploaded: call `hf upload` with the folder")


def accept_kwarg_groups(function: CallT) -> CallT:
    """Decorates the call of a processor: keyword arguments may come in groups, such as `images_kwargs={"size": ...}`.

    Arguments that the tokenizer was loaded with (`max_length=...`) are defaults. The call raises BadSetting for an
    argument that is given alone and in a group.
    """

    @wraps(function)
    def call_with_flat_kwargs(self: Any, *args: Any, **keywords: Any) -> Any:
        grouped: dict[str, Any] = {}
        for group_name in KWARG_GROUPS:
            for name, value in (keywords.pop(group_name, None) or {}).items():
                if name in keywords:
                    raise BadSetting(f"{name} is given alone and in {group_name}: give it once")
                grouped[name] = value
        return function(self, *args, **{**self.tokenizer.init_kwargs, **grouped, **keywords})

    return cast(CallT, call_with_flat_kwargs)


def override_video_config(
    config: VideoProcessorConfig | None, video_kwargs: Mapping[str, Any]
) -> VideoProcessorConfig | None:
    """The config of videos with a caller's arguments (keys of `VIDEO_FIELD_BY_KWARG`); None leaves a field as it is.

    Without a config there is nothing to change: the checkpoint was not trained with video, and refuses one.

    Raises:
        BadSetting: a number is too small.
    """
    overrides = {}
    for name, value in video_kwargs.items():
        if value is None:
            continue
        if not (value > 0 or (value == 0 and name == "skip_secs")):
            raise BadSetting(
                f"{name} is {value!r}; give {'0 or more' if name == 'skip_secs' else 'more than 0'}"
            )
        overrides[VIDEO_FIELD_BY_KWARG[name]] = value
    return None if config is None else replace(config, **overrides)
