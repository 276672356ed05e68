"""`quantization_config` as the guides write it: which of the house's ways to keep weights in few bits is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from idefics.config import FULL_PRECISION, Quantisation, QuantKind
from idefics.errors import BadSetting


@dataclass(frozen=True, slots=True)
class BitsAndBytesConfig:
    """Weights in eight bits, or in bitsandbytes' four.

    Attributes:
        load_in_8bit, load_in_4bit: one of them.
        llm_int8_threshold, llm_int8_enable_fp32_cpu_offload: of no effect: no value is kept out of the eight bits, and
            what lies in CPU memory is always run.
        llm_int8_skip_modules: parts that keep full precision; None: all but the decoder's layers.
        bnb_4bit_compute_dtype: in which products with four-bit weights are computed; None: the dtype of the others.
        bnb_4bit_quant_type: "nf4" or "fp4".
        bnb_4bit_use_double_quant: whether the scales of four-bit weights are quantised too.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: Sequence[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False

    def __post_init__(self) -> None:
        if self.load_in_8bit == self.load_in_4bit:
            both = "both" if self.load_in_8bit else "neither"
            raise BadSetting(f"{both} of load_in_8bit and load_in_4bit are asked for: give one of them")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise BadSetting(f"bnb_4bit_quant_type is {self.bnb_4bit_quant_type!r}; give nf4 or fp4")

    def quantisation(self) -> Quantisation:
        """What it means."""
        if self.load_in_8bit:
            return _quantisation("int8", self.llm_int8_skip_modules)
        dtype = self.bnb_4bit_compute_dtype
        return _quantisation(
            cast(QuantKind, self.bnb_4bit_quant_type),
            self.llm_int8_skip_modules,
            double=self.bnb_4bit_use_double_quant,
            compute_dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        )


@dataclass(frozen=True, slots=True)
class QuantoConfig:
    """Weights in eight or four bits, with nothing to install.

    Attributes:
        weights: "int8" or "int4".
        activations: None: what is computed with them stays in floating point.
        modules_to_not_convert: parts that keep full precision; None: all but the decoder's layers.
    """

    weights: str = "int8"
    activations: str | None = None
    modules_to_not_convert: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("int8", "int4"):
            raise BadSetting(f"weights is {self.weights!r}; give int8 or int4")
        if self.activations is not None:
            raise BadSetting(f"activations is {self.activations!r}; only weights are quantised: leave it out")

    def quantisation(self) -> Quantisation:
        """What it means."""
        return _quantisation(cast(QuantKind, self.weights), self.modules_to_not_convert)


QuantizationConfig = BitsAndBytesConfig | QuantoConfig


def _quantisation(kind: QuantKind, skip: Sequence[str] | None, **more: Any) -> Quantisation:
    return Quantisation(kind=kind, skip=FULL_PRECISION if skip is None else tuple(skip), **more)
