"""Reads an adapter and says how it changes each weight of a model; an adapter fits wholly or not at all.

The names in adapter_model.safetensors are those of the base model's modules, with a prefix, and with the name of a
factor at the end: `base_model.model.model.text_model.layers.0.self_attn.q_proj.lora_A.weight`. The tensors of
`modules_to_save` have no factor's name: they replace the model's.
Source: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.errors import AdapterMismatch
from idefics.weights.adapter_config import ALL_LINEAR, AdapterConfig, has_part, read_adapter_config
from idefics.weights.adapter_files import KEY_PREFIX, adapter_weights_file
from idefics.weights.key_rules import KeyRules
from idefics.weights.tensors import FileTensor, concatenated_or_mismatched_shape, open_file_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# "default" is the adapter's name in files that were not saved by peft itself.
FACTOR_KEY = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.weight)?"
)
REPLACED_KEY_PARTS = re.compile(r"\.base_layer(?=\.)|\.modules_to_save\.default(?=\.)")
FACTOR_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
MERGED_AT_ONCE = 1 << 22  # weights, in float32


@dataclass(frozen=True, slots=True)
class LowRankFactors:
    """Two matrices of low rank r whose product, times a scale, is added to a weight of O rows of I numbers.

    Attributes:
        a: (r, I), or (r, O) for an embedding.
        b: (O, r), or (I, r) for an embedding.
        scale: what the product is multiplied by.
        magnitude: the length of each of the O rows of the sum (DoRA); None: they keep theirs.
        is_embedding: an embedding is stored as its transpose.
    """

    a: FileTensor
    b: FileTensor
    scale: float
    magnitude: FileTensor | None = None
    is_embedding: bool = False

    @property
    def weight_size(self) -> tuple[int, int]:
        """(O, I) of the weight that the product is added to; those of a convolution's kernel are flattened."""
        size = self.b.shape[0], _numbers_per_row(self.a.shape)
        return size[::-1] if self.is_embedding else size

    def read(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The factors in float32, (O, r) and (r, I)."""
        a, b = (tensor.read().to(device).float().flatten(1) for tensor in (self.a, self.b))
        return (a.T, b.T) if self.is_embedding else (b, a)

    def read_magnitude(self, device: torch.device) -> Tensor | None:
        """The lengths of the rows, (O, 1) in float32, or None."""
        return None if self.magnitude is None else self.magnitude.read().to(device).float().reshape(-1, 1)


@dataclass(slots=True)
class WeightChange:
    """How an adapter changes one weight: it replaces it, adds a product to it, or both, in this order.

    Attributes:
        replacement: file tensors to be concatenated along dimension 0; empty: the checkpoint's own value is used.
        factors: what is added.
    """

    replacement: Sequence[FileTensor] = ()
    factors: LowRankFactors | None = None

    def read_changed(
        self, parts: Sequence[FileTensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The changed value. Sums are float32 and are rounded once; a part of the rows is computed at a time.

        Args:
            parts: the checkpoint's tensors, to be concatenated along dimension 0.
            shape: of the weight.
            dtype, device: of the result.
        """
        import torch

        tensors = [part.read() for part in self.replacement or parts]
        old = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if self.factors is None:
            return old.to(device, dtype, copy=True)
        value = torch.empty(*shape, dtype=dtype, device=device)
        left, right = self.factors.read(device)
        magnitude = self.factors.read_magnitude(device)
        num_rows = max(1, MERGED_AT_ONCE // right.shape[1])
        for start in range(0, len(value), num_rows):
            rows = slice(start, start + num_rows)
            changed = torch.addmm(
                old[rows].to(device).float().flatten(1), left[rows], right, alpha=self.factors.scale
            )
            if magnitude is not None:
                changed *= magnitude[rows] / changed.norm(dim=1, keepdim=True)
            value[rows] = changed.view(value[rows].shape).to(dtype)
        return value


def read_weight_changes(
    folder: Path, model: nn.Module, rules: KeyRules, stack: ExitStack
) -> Mapping[str, WeightChange]:
    """How the adapter in a folder changes the weights of a model, by the model's names. Its numbers are finite.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        model: with the shapes of its weights; it may be on the meta device.
        rules: how names of checkpoints become the model's.
        stack: the file stays open until it is closed.

    Raises:
        AdapterMismatch: the adapter does not fit its config or the model; all that is wrong is listed.
        UnsupportedModel, BrokenCheckpoint: as for `read_adapter_config`, pickles, or a damaged file.
    """
    from torch import nn

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    linear_names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    matching = _Matching(read_adapter_config(folder), shapes, rules)
    matching.match(open_file_tensors([adapter_weights_file(folder)], stack))
    matching.check_targets(linear_names)
    problems = {title: sorted(names) for title, names in matching.problems.items() if names}
    if not matching.changes and not problems:
        problems["empty"] = [adapter_weights_file(folder).name]
    if problems:
        raise AdapterMismatch(str(folder), problems)
    return matching.changes


@dataclass(slots=True)
class _Matching:
    """Matches the tensors of an adapter with the weights of a model, and collects what does not fit.

    Attributes:
        config: of the adapter.
        shapes: of the model's tensors by name.
        rules: how names of checkpoints become the model's.
        changes: the result.
        problems: what is wrong -> of which tensors or modules.
        uses_new_names: whether the adapter's names are the model's.
    """

    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]
    rules: KeyRules
    changes: dict[str, WeightChange] = field(default_factory=dict)
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    uses_new_names: bool = True

    def match(self, tensors: Mapping[str, FileTensor]) -> None:
        """Makes changes of all tensors of an adapter."""
        factors_by_module: defaultdict[str, dict[str, FileTensor]] = defaultdict(dict)
        replacements: dict[str, FileTensor] = {}
        for key, tensor in tensors.items():
            name = key.removeprefix(KEY_PREFIX)
            if not tensor.read().float().isfinite().all():
                self.problems["infinite or NaN"].append(key)
            if not tensor.dtype_name.startswith(("F", "BF")):
                self.problems["not floating-point"].append(key)
            elif match := FACTOR_KEY.fullmatch(name):
                factors_by_module[match["module"]][match["factor"]] = tensor
            elif (spelled := self._spelled_as_known(REPLACED_KEY_PARTS.sub("", name))) is not None:
                replacements[spelled] = tensor
                if not self.config.replaces(spelled) and ".base_layer." not in key:
                    self.problems["not in modules_to_save"].append(key)
            else:
                self.problems["unknown"].append(key)
        for target, sources in self.rules.sources_by_target(replacements).items():
            self._add_replacement(target, sources)
        for module, factors in factors_by_module.items():
            self._add_factors(module, factors)

    def _spelled_as_known(self, name: str) -> str | None:
        """The name of a tensor as the key rules know it; None if the model has no such tensor.

        An adapter of the model without its head lacks the first "model.".
        """
        for spelled in (name, f"model.{name}"):
            for target in self.rules.source_names_by_target([spelled]):
                if target in self.shapes:
                    self.uses_new_names &= target == name
                    return spelled
        return None

    def _add_replacement(self, target: str, parts: Sequence[FileTensor]) -> None:
        """Adds the change of a tensor that is replaced."""
        expected, shape = self.shapes[target], concatenated_or_mismatched_shape(parts, self.shapes[target])
        if shape != expected:
            self.problems["misshapen"].append(f"{parts[0].name} is {shape}, not {expected}")
        self.changes.setdefault(target, WeightChange()).replacement = parts

    def _add_factors(self, module: str, factors: Mapping[str, FileTensor]) -> None:
        """Adds the change of a weight that a product is added to."""
        spelled = self._spelled_as_known(f"{module}.weight")
        if spelled is None:
            self.problems["unknown"].extend(tensor.name for tensor in factors.values())
            return
        (target,) = self.rules.source_names_by_target([spelled])
        module = spelled.removesuffix(".weight")
        if not self.config.targets(module):
            self.problems["not in target_modules"].append(module)
        magnitude = factors.get("lora_magnitude_vector")
        pair = next(
            (pair for pair in FACTOR_PAIRS if factors.keys() - {"lora_magnitude_vector"} == {*pair}), None
        )
        if pair is None or self.config.use_dora != (magnitude is not None):
            self.problems["incomplete"].extend(tensor.name for tensor in factors.values())
            return
        change = self.changes.setdefault(target, WeightChange())
        if change.factors is not None:
            self.problems["there twice"].append(module)
        low_rank = LowRankFactors(
            a=factors[pair[0]],
            b=factors[pair[1]],
            scale=self.config.scale_of(module),
            magnitude=magnitude,
            is_embedding=pair[0] == "lora_embedding_A",
        )
        self._check_shapes(module, low_rank, self.shapes[target])
        change.factors = low_rank

    def _check_shapes(self, module: str, low_rank: LowRankFactors, expected: tuple[int, ...]) -> None:
        """Notes where the shapes of a module's factors fit neither each other, nor the config, nor the weight."""
        a, b, rank = low_rank.a.shape, low_rank.b.shape, self.config.rank_of(module)
        if min(len(a), len(b), len(expected)) < 2:
            self.problems["misshapen"].append(f"{module} has factors {a} and {b} for a weight {expected}")
            return
        if (a[0], _numbers_per_row(b)) != (rank, rank):
            self.problems["of another rank"].append(f"{module} has {a[0]}, not {rank}")
        size, expected_size = low_rank.weight_size, (expected[0], _numbers_per_row(expected))
        magnitude = low_rank.magnitude
        if size != expected_size:
            self.problems["misshapen"].append(f"{module} is {size}, not {expected_size}")
        elif magnitude is not None and _numbers_per_row((1, *magnitude.shape)) != size[0]:
            self.problems["misshapen"].append(f"{magnitude.name} is {magnitude.shape}, not {size[:1]}")

    def check_targets(self, linear_names: Sequence[str]) -> None:
        """Notes what the config names and the adapter does not have.

        Modules are compared by the model's names, so only if the adapter is written in these.

        Args:
            linear_names: the model's linear layers.
        """
        changed = {name for name, change in self.changes.items() if change.factors}
        for part in self.config.modules_to_save:
            names = [name for name in self.shapes if has_part(name, part)]
            missing = [
                name for name in names if not (change := self.changes.get(name)) or not change.replacement
            ]
            if not names:
                self.problems["unknown in modules_to_save"].append(part)
            self.problems["missing"].extend(missing)
        if self.uses_new_names:
            self.problems["missing"].extend(
                f"{module}.lora_A"
                for module in self._possible_modules(linear_names)
                if self.config.targets(module) and f"{module}.weight" not in changed
            )

    def _possible_modules(self, linear_names: Sequence[str]) -> Iterator[str]:
        """The modules of the model that may have factors."""
        if self.config.target_modules == ALL_LINEAR:
            yield from linear_names
            return
        for name, shape in self.shapes.items():
            if name.endswith(".weight") and len(shape) > 1:
                yield name.removesuffix(".weight")


def _numbers_per_row(shape: Sequence[int]) -> int:
    """The product of all dimensions but the first."""
    return math.prod(shape[1:])
