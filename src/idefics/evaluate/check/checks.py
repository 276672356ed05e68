"""What checks look at, `CheckSubject`, which loads its parts when they are needed; and what a check is and finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from idefics import models, weights
from idefics.catalog import CATALOG, CatalogEntry, find_entry
from idefics.evaluate.check.drawn_pictures import fixed_items
from idefics.generation.adapters import find_merged_adapter
from idefics.generation.load_settings import LoadSettings
from idefics.generation.loading import create_processor, load_model
from idefics.lazy import cached_property
from idefics.messages import ImageDetail
from idefics.nn.upcast import UpcastLinear
from idefics.processing.fetch import Fetcher
from idefics.quant.quantized_linear import QuantizedLinear
from idefics.tasks.idefics_model import Idefics

if TYPE_CHECKING:
    from idefics.evaluate.check.activation_checks import ActivationScores
    from idefics.evaluate.check.logits_record import LogitsRecord
    from idefics.evaluate.check.weight_statistics import WeightStatistics
    from idefics.models import Checkpoint
    from idefics.processing.processor import Processor
    from idefics.prompt import Prompt


Rounding = Literal["none", "16 bits", "quantised"]  # the finest first
FILE_DTYPE_BY_SETTING = {"float16": "F16", "bfloat16": "BF16"}


@dataclass(eq=False)
class CheckSubject:
    """A checkpoint that is checked.

    Attributes:
        model: a short name, a folder or a hub id.
        settings: how it is loaded.
        expected: the record that it is compared with; None: none.
        fetch: whether pictures of known answers may be fetched.
        has_loaded: whether the model was loaded.
    """

    model: str
    settings: LoadSettings
    expected: LogitsRecord | None = None
    fetch: bool = False
    has_loaded: bool = field(default=False, init=False)
    _vlm: Idefics | None = field(default=None, init=False)

    @cached_property
    def folder(self) -> Path:
        """The absolute path of the checkpoint, which is downloaded if necessary."""
        return weights.find_checkpoint(
            self.model,
            revision=self.settings.revision,
            offline=self.settings.offline,
            progress=self.settings.progress,
        ).absolute()

    @cached_property
    def adapter(self) -> Path | None:
        """The absolute path of the adapter, which is downloaded if necessary; None: there is none."""
        found = find_merged_adapter(self.model, self.checkpoint, self.settings)
        return None if found is None else found.absolute()

    @property
    def label(self) -> str:
        """The model as it was given, without the path of a folder."""
        path = Path(self.model).expanduser()
        return path.absolute().name if path.exists() else self.model

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The configuration of the checkpoint."""
        return models.read_checkpoint(self.folder)

    @cached_property
    def module_on_meta_device(self) -> nn.Module:
        """The module of the checkpoint, without memory."""
        return models.build_on_meta_device(self.checkpoint)

    @cached_property
    def processor(self) -> Processor:
        """The processor, without the model."""
        return create_processor(self.checkpoint, Fetcher())

    @cached_property
    def entry(self) -> CatalogEntry | None:
        """The catalog's entry: by name or hub id; None for any other checkpoint."""
        by_hub_id = {entry.hub_id: entry for entry in CATALOG if entry.hub_id}
        return find_entry(self.model) or by_hub_id.get(self.model)

    @cached_property
    def num_parameters(self) -> int:
        """The number of parameters; tied ones once."""
        return sum(weight.numel() for weight in self.module_on_meta_device.parameters())

    @cached_property
    def weight_reading(self) -> tuple[dict[str, WeightStatistics], list[str]]:
        """The result of `read_weight_statistics`."""
        from idefics.evaluate.check.weight_statistics import read_weight_statistics

        return read_weight_statistics(self.folder, self.checkpoint.family.key_rules)

    @property
    def statistics(self) -> dict[str, WeightStatistics]:
        """Statistics of the tensors, by the model's names."""
        return self.weight_reading[0]

    @property
    def vlm(self) -> Idefics:
        """The loaded model; loaded again if it was closed."""
        if self._vlm is None:
            self._vlm = Idefics(load_model(self.folder, self._local_settings()))
            self.has_loaded = True
        return self._vlm

    @cached_property
    def fixed_prompts(self) -> dict[str, Prompt]:
        """The prompts that are computed in several ways, by name; each picture in one tile, to save time."""
        processor = self.processor.with_image_detail(ImageDetail("low", 1))
        return {name: processor.encode_raw(items) for name, items in fixed_items().items()}

    @cached_property
    def fixed_logits(self) -> dict[str, Tensor]:
        """(N, V) float32 logits of the model for each of the fixed prompts, on the CPU."""
        return {name: self.vlm.logits(prompt).cpu() for name, prompt in self.fixed_prompts.items()}

    @cached_property
    def rounds_inputs(self) -> bool:
        """Whether more than the stored weights has 16 bits or fewer: activations, inputs of products or cached keys."""
        return self.vlm.engine.model.dtype != torch.float32 or any(
            isinstance(layer, QuantizedLinear)
            or (isinstance(layer, UpcastLinear) and layer.multiplies_bfloat16)
            for layer in self.network.modules()
        )

    @cached_property
    def rounding(self) -> Rounding:
        """The coarsest rounding of the stored weights and of what is computed with them."""
        if self.is_quantized:
            return "quantised"
        dtype = FILE_DTYPE_BY_SETTING.get(str(self.settings.dtype))
        return "16 bits" if self.rounds_inputs or (dtype and self.stored_dtypes != {dtype}) else "none"

    @property
    def stored_dtypes(self) -> set[str]:
        """The number formats of the tensors in the files, as safetensors spells them."""
        return {dtype for one in self.statistics.values() for dtype in one.dtype_names}

    @property
    def network(self) -> nn.Module:
        """The module of the loaded model."""
        network: nn.Module = self.vlm.engine.model  # type: ignore[assignment]
        return network

    @cached_property
    def activation_scores(self) -> ActivationScores:
        """The result of `measure_activations`."""
        from idefics.evaluate.check.activation_checks import measure_activations

        return measure_activations(self)

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantised, in the files or while they are loaded."""
        return self.checkpoint.quantization is not None or self.settings.quantize is not None

    @property
    def files_hold_weights(self) -> bool:
        """Whether the model's weights are those in its files: neither quantised there, nor changed by an adapter."""
        return self.checkpoint.quantization is None and self.settings.adapter is None

    @contextmanager
    def second_model(self, **changes: object) -> Iterator[Idefics]:
        """The checkpoint loaded with other settings; closed at the end of the context.

        The model itself is closed before, so that there is never more than one copy in memory.
        """
        self.close()
        vlm = Idefics(load_model(self.folder, replace(self._local_settings(), **changes)))  # type: ignore[arg-type]
        try:
            yield vlm
        finally:
            vlm.close()

    def close(self) -> None:
        """Frees the model, if it is loaded."""
        if self._vlm is not None:
            self._vlm.close()
            self._vlm = None

    def _local_settings(self) -> LoadSettings:
        """The settings for folders, which have no revision; encoded pictures are computed, not read from files."""
        return replace(
            self.settings,
            adapter=self.adapter,
            revision=None,
            offline=None,
            progress=None,
            feature_cache=False,
        )


CheckStatus = Literal["ok", "off", "skipped"]
MAX_NAMED = 4  # things that a line names; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """What a check found.

    Attributes:
        status: "off": something is wrong; "skipped": the check does not apply, or needs something that is not there.
        measured: what was measured; of a skipped check: why it was skipped.
        limit: what it was compared with; "" of a skipped check.
        details: what is wrong, one sentence each.
    """

    status: CheckStatus
    measured: str
    limit: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """One check of a checkpoint.

    Attributes:
        name: two or three words.
        shows: what it shows when it passes.
        tolerance: the limit and the reason for it.
        run: finds the outcome.
        is_quick: whether `--quick` runs it.
    """

    name: str
    shows: str
    tolerance: str
    run: Callable[[CheckSubject], CheckOutcome]
    is_quick: bool = True


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of a check, and the seconds that it took."""

    check: ModelCheck
    outcome: CheckOutcome
    seconds: float


def skipped(reason: str) -> CheckOutcome:
    """The outcome of a check that was not done."""
    return CheckOutcome(status="skipped", measured=reason)


def judge(measured: str, limit: str, wrong: Iterable[str]) -> CheckOutcome:
    """The outcome of a check that found `wrong`, one sentence each: "ok" if there is none."""
    details = tuple(wrong)
    return CheckOutcome(status="off" if details else "ok", measured=measured, limit=limit, details=details)


def join_names(names: Iterable[str]) -> str:
    """At most `MAX_NAMED` names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more
