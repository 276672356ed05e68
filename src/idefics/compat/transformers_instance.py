"""Makes models pass `isinstance(model, transformers.PreTrainedModel)`, without importing transformers.

transformers' `Trainer` saves a model by its `save_pretrained` only if it passes; of others it writes the weights
without config.json. The class is looked up where the caller has imported transformers.
"""

from __future__ import annotations

import sys
from functools import cache

from torch import nn

TRANSFORMERS_MODULE = "transformers.modeling_utils"


class TransformersInstanceMixin(nn.Module):
    """Instances are also instances of transformers' `PreTrainedModel`, once that has been imported.

    `type(model)` and the method resolution order do not change: `isinstance` also reads `__class__`, as with the
    specifications of `unittest.mock`.
    """

    # Class attributes that transformers' own code reads. Its caches and compiled calls are not supported here.
    _no_split_modules = ("DecoderLayer", "GatedCrossAttentionLayer", "VisionLayer")
    _keys_to_ignore_on_save = _keys_to_ignore_on_load_missing = _keys_to_ignore_on_load_unexpected = None
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict = _tied_weights_keys = _tp_plan = None
    _supports_sdpa = _supports_flash_attn = _supports_flash_attn_2 = True
    _supports_flex_attn = _supports_attention_backend = _supports_static_cache = False
    _supports_cache_class = _supports_quantized_cache = _can_compile_fullgraph = _is_stateful = False
    is_parallelizable = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """True: the rules by which transformers renames weights of its own classes do not apply."""
        return True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """True: `set_attn_implementation` reaches every part."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """False: no code of the model was downloaded with a checkpoint."""
        return False

    def __init_subclass__(cls) -> None:
        """Does nothing: transformers' own, which reads annotations of its classes, is not called for ours."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        theirs = sys.modules.get(TRANSFORMERS_MODULE)
        if theirs is None or "PreTrainedModel" not in vars(theirs):  # it may be half imported
            return type(self)
        own: type = type(self)
        return _make_combined_class(own, theirs.PreTrainedModel)


@cache
def _make_combined_class(own: type, theirs: type) -> type:
    """A class with the name of `own` that is a subclass of both; it has no instances."""
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own)(own.__name__, (own, theirs), names)
