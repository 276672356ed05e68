"""`PretrainedConfig`: every field of a released config.json is an attribute.

Configs hold what a file says; `to_model_config` is what this package reads from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

from idefics.compat.pretrained import (
    CONFIG_FILES,
    AnnotatedFields,
    PretrainedMixin,
    StrPath,
    read_json_object,
    write_json,
)
from idefics.config import ModelConfig
from idefics.errors import UnsupportedModel
from idefics.models import family_for

CONFIG_FILE = "config.json"
UNSAVED_FIELDS = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "gradient_checkpointing",
)

# model_type -> the config class of a whole model, which has configs of its parts.
CONFIG_CLASS_BY_MODEL_TYPE: dict[str, type[PretrainedConfig]] = {}


class PretrainedConfig(PretrainedMixin, AnnotatedFields):
    """A config whose fields are the annotated names of its class; other keyword arguments are kept as attributes too.

    Attributes:
        parts: field -> config class of a part, such as "vision_config".
        default_parts: field -> the fields of a part that is not given, if they differ from the defaults of its class.
        _attn_implementation: the attention backend of models that are built from this config; not saved.
        gradient_checkpointing: whether such models begin with gradient checkpointing enabled; not saved.
        return_dict, output_attentions, output_hidden_states: the defaults of `forward`.
        torch_dtype: the dtype of the stored weights, by its name.
        architectures: the model classes whose weights were saved.
        use_cache, tie_word_embeddings: only the configs of whole models have them.
    """

    file_selection = CONFIG_FILES
    model_type: ClassVar[str] = ""
    parts: ClassVar[dict[str, type[PretrainedConfig]]] = {}
    default_parts: ClassVar[dict[str, dict[str, Any]]] = {}

    return_dict: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    torch_dtype: Any = None
    architectures: list[str] | None = None

    _attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    # Read by transformers' own code from every config; some classes have fields of these names.
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None
    base_model_tp_plan: Any = None
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {}
    is_encoder_decoder: ClassVar[bool] = False

    use_cache: bool
    tie_word_embeddings: bool

    def __init_subclass__(cls) -> None:
        """Collects the fields of the class, and registers the class of a whole model."""
        super().__init_subclass__()
        cls.sub_configs = cls.parts
        if cls.parts:
            CONFIG_CLASS_BY_MODEL_TYPE.setdefault(cls.model_type, cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        if dtype := named.pop("dtype", None):  # its name in newer files
            named["torch_dtype"] = dtype
        if attn_implementation := named.pop("attn_implementation", None):
            named["_attn_implementation"] = attn_implementation
        super().__init__(*values, **named)
        if self.torch_dtype is not None:
            self.torch_dtype = str(self.torch_dtype).removeprefix("torch.")
        for name, part in self.parts.items():
            value = getattr(self, name)
            if not isinstance(value, PretrainedConfig):
                setattr(self, name, part(**(value or self.default_parts.get(name, {}))))

    @property
    def use_return_dict(self) -> bool:
        """`return_dict` by its old name in transformers."""
        return self.return_dict

    def to_model_config(self) -> ModelConfig:
        """Converts this config for `idefics.models`; raises UnsupportedModel if this package cannot run the model."""
        return family_for(self.model_type).read_config(self.to_dict(), {})

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json; common fields that have their default are left out."""
        content = {
            name: value.to_dict() if isinstance(value, PretrainedConfig) else deepcopy(value)
            for name, value in vars(self).items()
            if name not in UNSAVED_FIELDS
            and (name not in PretrainedConfig.fields or value != PretrainedConfig.fields[name])
        }
        return {**content, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that differ from those of a config made without arguments, `model_type` included."""
        default_fields = type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in default_fields or value != default_fields[name]
        }

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The config of the decoder: `text_config`, or this config where there is no such part."""
        text: PretrainedConfig = vars(self)["text_config"] if "text_config" in self.parts else self
        return text

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], **changes: Any) -> Self:
        """The config in the content of a config.json.

        Args:
            changes: fields with another value; a dict for a part ("text_config") changes the fields that it names.
        """
        for name in cls.parts.keys() & content.keys() & changes.keys():
            if isinstance(content[name], dict) and isinstance(changes[name], dict):
                changes[name] = {**content[name], **changes[name]}
        return super().from_dict(deepcopy(content), **changes)

    @classmethod
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads config.json of a folder; `settings` take the place of those in the file.

        The class of a part, such as a vision tower, takes its part of a whole model's config.
        """
        content = read_json_object(folder / CONFIG_FILE)
        model_type = content.get("model_type", cls.model_type)
        composite_class = CONFIG_CLASS_BY_MODEL_TYPE.get(model_type, cls)
        for name, part in composite_class.parts.items():
            if part is cls:
                return cls.from_dict(getattr(composite_class.from_dict(content), name).to_dict(), **settings)
        if model_type != cls.model_type:
            raise UnsupportedModel(
                f"{folder} is of model_type {model_type!r}, {cls.__name__} of {cls.model_type!r}"
            )
        return cls.from_dict(content, **settings)

    def save_pretrained(self, save_directory: StrPath) -> None:
        """Writes config.json into a folder, which is created where it does not exist."""
        write_json(Path(save_directory) / CONFIG_FILE, self.to_dict())

    def update(self, changes: dict[str, Any]) -> None:
        """Sets fields of the config by their names."""
        vars(self).update(changes)


PretrainedConfig.fields = {
    name: PretrainedConfig.__dict__[name]
    for name in ("return_dict", "output_attentions", "output_hidden_states", "torch_dtype", "architectures")
}
