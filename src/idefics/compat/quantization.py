"""`quantization_config` of the guides, converted to the `QuantizationConfig` of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, ClassVar, cast

from idefics.compat.keyword_arguments import split_kwargs
from idefics.compat.pretrained import config_to_dict
from idefics.config import UNQUANTIZED_MODULES, QuantizationConfig, QuantKind
from idefics.errors import BadSetting

DTYPE_FIELDS = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")


class QuantizationConfigMixin:
    """Base of the quantisation configs of the guides. `quant_method` is the name of the method in config.json."""

    __slots__ = ()
    quant_method: ClassVar[str]

    def to_dict(self: Any) -> dict[str, Any]:
        """All fields and `quant_method`, as config.json has them."""
        named = {
            name: str(value).removeprefix("torch.") if name in DTYPE_FIELDS and value is not None else value
            for name, value in asdict(self).items()
        }
        return {**named, "quant_method": self.quant_method}


@dataclass(frozen=True, slots=True)
class BitsAndBytesConfig(QuantizationConfigMixin):
    """Weights in 8 bits, or in 4 bits by bitsandbytes.

    Attributes:
        load_in_8bit, load_in_4bit: exactly one is true.
        llm_int8_threshold, llm_int8_has_fp16_weight, llm_int8_enable_fp32_cpu_offload: of no effect: outliers are
            quantised too, and weights in CPU memory are always supported.
        llm_int8_skip_modules: modules that are not quantised; None: all but the decoder's layers.
        bnb_4bit_compute_dtype: in which products with 4-bit weights are computed; None: the model's dtype.
        bnb_4bit_quant_type: "nf4" or "fp4".
        bnb_4bit_use_double_quant: whether the scales of 4-bit weights are quantised too.
        bnb_4bit_quant_storage: of no effect: packed weights are stored as uint8, which changes no value.

    Raises:
        BadSetting: both or neither of the first two are true, or there is no such type.
    """

    quant_method: ClassVar[str] = "bitsandbytes"

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: Sequence[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __post_init__(self) -> None:
        if self.load_in_8bit == self.load_in_4bit:
            both = "both" if self.load_in_8bit else "neither"
            raise BadSetting(f"{both} of load_in_8bit and load_in_4bit are true: give one of them")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise BadSetting(f"bnb_4bit_quant_type is {self.bnb_4bit_quant_type!r}; give nf4 or fp4")

    def to_quantization_config(self) -> QuantizationConfig:
        """Converts this config to this package's `QuantizationConfig`."""
        if self.load_in_8bit:
            return _make_quantization_config("int8", self.llm_int8_skip_modules)
        dtype = self.bnb_4bit_compute_dtype
        return _make_quantization_config(
            cast(QuantKind, self.bnb_4bit_quant_type),
            self.llm_int8_skip_modules,
            double=self.bnb_4bit_use_double_quant,
            compute_dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        )


@dataclass(frozen=True, slots=True)
class QuantoConfig(QuantizationConfigMixin):
    """Weights in 8 or 4 bits by this package's own kernels.

    Attributes:
        weights: "int8" or "int4".
        activations: must be None: activations are not quantised.
        modules_to_not_convert: modules that are not quantised; None: all but the decoder's layers.

    Raises:
        BadSetting: another value of `weights` or `activations`.
    """

    quant_method: ClassVar[str] = "quanto"

    weights: str = "int8"
    activations: str | None = None
    modules_to_not_convert: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("int8", "int4"):
            raise BadSetting(f"weights is {self.weights!r}; give int8 or int4")
        if self.activations is not None:
            raise BadSetting(f"activations is {self.activations!r}; only weights are quantised: leave it out")

    def to_quantization_config(self) -> QuantizationConfig:
        """Converts this config to this package's `QuantizationConfig`."""
        return _make_quantization_config(cast(QuantKind, self.weights), self.modules_to_not_convert)


AnyQuantizationConfig = BitsAndBytesConfig | QuantoConfig


@dataclass(frozen=True, slots=True)
class HfQuantizer:
    """The attribute `hf_quantizer` of a model with quantised weights, which trainers read.

    Attributes:
        quantization_config: how the weights are quantised.
        is_trainable: whether adapters on the quantised weights can be trained.
        is_qat_trainable, is_serializable, is_compileable: whether quantised weights can be trained, saved, compiled.
    """

    quantization_config: AnyQuantizationConfig
    is_trainable: bool = True
    is_qat_trainable: bool = False
    is_serializable: bool = False
    is_compileable: bool = False


def as_quantization_config(config: object) -> AnyQuantizationConfig | None:
    """Converts a quantisation config of this package or of transformers, or its content.

    Raises:
        BadSetting: it is none of these, or of another method.
    """
    if config is None or isinstance(config, BitsAndBytesConfig | QuantoConfig):
        return config
    content = config_to_dict(config)
    if content is None:
        raise BadSetting(
            f"quantization_config is of type {type(config).__name__}; give a BitsAndBytesConfig or a QuantoConfig"
        )
    method = content.get("quant_method", "bitsandbytes")
    method = str(method.value) if isinstance(method, Enum) else str(method)
    config_classes: tuple[type[AnyQuantizationConfig], ...] = (BitsAndBytesConfig, QuantoConfig)
    config_class = {kind.quant_method: kind for kind in config_classes}.get(method)
    if config_class is None:
        raise BadSetting(
            f"quantization_config asks for {method}; give a BitsAndBytesConfig or a QuantoConfig"
        )
    # transformers also writes private names ("_load_in_4bit"), which repeat the others.
    named, _ = split_kwargs(content, {field.name for field in fields(config_class)})
    return config_class(**named)


def _make_quantization_config(
    kind: QuantKind, skip: Sequence[str] | None, **fields: Any
) -> QuantizationConfig:
    """A `QuantizationConfig` that leaves the modules in `skip` as they are; None: all but the decoder's layers."""
    return QuantizationConfig(kind=kind, skip=UNQUANTIZED_MODULES if skip is None else tuple(skip), **fields)
