"""`from_pretrained` without a checkpoint: a config and weights that the caller has in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from os import PathLike
from typing import Any

from torch import Tensor

from idefics.compat.loading_arguments import IGNORED_MODEL_KWARGS, drop_neutral_model_kwargs
from idefics.errors import BadSetting, WeightsMismatch

# What `from_config` takes beside the config.
FROM_CONFIG_OPTIONS = ("torch_dtype", "dtype", "attn_implementation")


def accept_state_dict(load: Callable[..., Any]) -> Callable[..., Any]:
    """A `from_pretrained` that also takes None as the checkpoint, with `config` and `state_dict` in its place.

    The weights are copied, and have the dtype that they are given in unless the caller names another one.
    """

    @wraps(load)
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *arguments: Any,
        state_dict: Mapping[str, Tensor] | None = None,
        **keywords: Any,
    ) -> Any:
        if pretrained_model_name_or_path is not None:
            given = {} if state_dict is None else {"state_dict": state_dict}
            return load(cls, pretrained_model_name_or_path, *arguments, **given, **keywords)
        options = drop_neutral_model_kwargs(f"{cls.__name__}.from_pretrained", keywords)
        options = {
            name: value
            for name, value in options.items()
            if value is not None and name not in IGNORED_MODEL_KWARGS
        }
        config = options.pop("config", None)
        if config is None or state_dict is None:
            raise BadSetting(
                "pretrained_model_name_or_path is None: give the folder or the id of a checkpoint, "
                "or both config and state_dict"
            )
        if others := sorted(options.keys() - set(FROM_CONFIG_OPTIONS)):
            raise BadSetting(
                f"pretrained_model_name_or_path is None and {', '.join(others)} is given: "
                f"beside config and state_dict give only {', '.join(FROM_CONFIG_OPTIONS)}"
            )
        return _build_from_state_dict(cls, config, state_dict, options)

    return from_pretrained


def _build_from_state_dict(
    cls: Any, config: Any, state_dict: Mapping[str, Tensor], options: dict[str, Any]
) -> Any:
    """The model of `config` with these weights, ready to answer.

    Raises:
        WeightsMismatch: `state_dict` are not exactly the model's; of tied ones a single name is enough.
    """
    if "torch_dtype" not in options and "dtype" not in options:
        dtypes = (weight.dtype for weight in state_dict.values() if weight.is_floating_point())
        options = {**options, "dtype": next(dtypes, "float32")}
    model = cls.from_config(config, **options)
    model_state_dict = model.state_dict()
    loaded_data_ptrs = {
        model_state_dict[name].data_ptr() for name in model_state_dict.keys() & state_dict.keys()
    }
    missing = [
        name
        for name, weight in model_state_dict.items()
        if name not in state_dict and weight.data_ptr() not in loaded_data_ptrs
    ]
    mismatched_shapes = {
        name: (tuple(weight.shape), tuple(model_state_dict[name].shape))
        for name, weight in state_dict.items()
        if name in model_state_dict and weight.shape != model_state_dict[name].shape
    }
    unused = [name for name in state_dict if name not in model_state_dict]
    if missing or unused or mismatched_shapes:
        raise WeightsMismatch(missing, unused, mismatched_shapes)
    model.load_state_dict(state_dict, strict=False)
    return model.eval()
