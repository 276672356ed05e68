"""Activation functions by the names in `config.json`."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from idefics.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,  # exact, by erf
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}
