"""`from_pretrained` of a config and weights that the caller has in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from idefics.compat.keyword_arguments import (
    IGNORED_MODEL_KWARGS,
    NEUTRAL_MODEL_KWARGS,
    check_and_drop_neutral_kwargs,
)
from idefics.errors import BadSetting, WeightsMismatch

if TYPE_CHECKING:
    from idefics.compat.loading import ModelFromPretrainedMixin
    from idefics.compat.modeling import PreTrainedModel

# The arguments of `from_config` other than the config.
FROM_CONFIG_OPTIONS = ("torch_dtype", "dtype", "attn_implementation")


def load_from_memory(
    model_loader: type[ModelFromPretrainedMixin], kwargs: Mapping[str, Any]
) -> PreTrainedModel:
    """Builds a model from the config and the weights among keyword arguments of `from_pretrained`.

    Without a dtype among the arguments, the model gets the dtype of the weights. It is in evaluation mode.

    Raises:
        BadSetting: the config or the weights are missing, or an argument needs a checkpoint.
        WeightsMismatch: weights are missing, unused or of another shape; of tied weights one name is enough.
    """
    given = {name: v for name, v in kwargs.items() if v is not None and name not in IGNORED_MODEL_KWARGS}
    config, state_dict = given.pop("config", None), given.pop("state_dict", None)
    if config is None or state_dict is None:
        raise BadSetting(
            "pretrained_model_name_or_path is None: give the folder or the id of a checkpoint, "
            "or both config and state_dict"
        )
    function_name = f"{model_loader.__name__}.from_pretrained"
    options = check_and_drop_neutral_kwargs(function_name, given, NEUTRAL_MODEL_KWARGS)
    if others := sorted(options.keys() - set(FROM_CONFIG_OPTIONS)):
        raise BadSetting(
            f"pretrained_model_name_or_path is None and {', '.join(others)} is given: "
            f"with config and state_dict give only {', '.join(FROM_CONFIG_OPTIONS)}"
        )
    if "torch_dtype" not in options and "dtype" not in options:
        dtypes = (weight.dtype for weight in state_dict.values() if weight.is_floating_point())
        options["dtype"] = next(dtypes, "float32")
    model: PreTrainedModel = model_loader.from_config(config, **options)
    _check_weights(model.state_dict(), state_dict)
    model.load_state_dict(state_dict, strict=False)
    return model.eval()


def _check_weights(tensors: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> None:
    """Raises WeightsMismatch where weights do not fit the tensors of a model."""
    loaded_data_ptrs = {tensors[name].data_ptr() for name in tensors.keys() & state_dict.keys()}
    missing = [name for name, tensor in tensors.items() if tensor.data_ptr() not in loaded_data_ptrs]
    unused = [name for name in state_dict if name not in tensors]
    mismatched_shapes = {
        name: (tuple(weight.shape), tuple(tensors[name].shape))
        for name, weight in state_dict.items()
        if name in tensors and weight.shape != tensors[name].shape
    }
    if missing or unused or mismatched_shapes:
        raise WeightsMismatch(missing, unused, mismatched_shapes)
