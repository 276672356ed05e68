"""`from_pretrained` without a checkpoint: a config and weights that the caller has in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from os import PathLike
from typing import Any

from torch import Tensor

from idefics.compat.loading_arguments import IGNORED_BY_MODELS, without_neutral
from idefics.errors import BadSetting, WeightsMismatch

# What `from_config` takes beside the config.
OPTIONS = ("torch_dtype", "dtype", "attn_implementation")


def or_given_weights(load: Callable[..., Any]) -> Callable[..., Any]:
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
        options = without_neutral(f"{cls.__name__}.from_pretrained", keywords)
        options = {
            name: value
            for name, value in options.items()
            if value is not None and name not in IGNORED_BY_MODELS
        }
        config = options.pop("config", None)
        if config is None or state_dict is None:
            raise BadSetting(
                "pretrained_model_name_or_path is None: give the folder or the id of a checkpoint, "
                "or both config and state_dict"
            )
        if others := sorted(options.keys() - set(OPTIONS)):
            raise BadSetting(
                f"pretrained_model_name_or_path is None and {', '.join(others)} is given: "
                f"beside config and state_dict give only {', '.join(OPTIONS)}"
            )
        return _model(cls, config, state_dict, options)

    return from_pretrained


def _model(cls: Any, config: Any, weights: Mapping[str, Tensor], options: dict[str, Any]) -> Any:
    """The model of `config` with these weights, ready to answer.

    Raises:
        WeightsMismatch: `weights` are not exactly the model's; of tied ones a single name is enough.
    """
    if "torch_dtype" not in options and "dtype" not in options:
        dtypes = (weight.dtype for weight in weights.values() if weight.is_floating_point())
        options = {**options, "dtype": next(dtypes, "float32")}
    model = cls.from_config(config, **options)
    own = model.state_dict()
    present = {own[name].data_ptr() for name in own.keys() & weights.keys()}
    missing = [
        name for name, weight in own.items() if name not in weights and weight.data_ptr() not in present
    ]
    shapes = {
        name: (tuple(weight.shape), tuple(own[name].shape))
        for name, weight in weights.items()
        if name in own and weight.shape != own[name].shape
    }
    unused = [name for name in weights if name not in own]
    if missing or unused or shapes:
        raise WeightsMismatch(missing, unused, shapes)
    model.load_state_dict(weights, strict=False)
    return model.eval()
