"""`RayEngine`: a Ray actor that answers blocks of rows; how many there are, and what they load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.batch.answerers import Answerer, LocalAnswerer, WorkItem
from idefics.batch.run_settings import fingerprint_checkpoint, read_shot_picture
from idefics.errors import BadSetting, ModelError
from idefics.messages import Shot

if TYPE_CHECKING:
    from idefics import Idefics


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Which Ray cluster is used, and how much of it.

    Attributes:
        address: "local", "auto" or HOST:PORT of the head node; see `ray_cluster.connect`.
        num_engines: how many engines answer rows; None: as many as the cluster has GPUs; without GPUs, as many as it
            has nodes.
        num_gpus: GPUs of each engine; a part of one lets several engines share it. None: 1, or 0 without GPUs.
        num_cpus: CPUs of each engine, and its number of threads; None: the share of an engine on the smallest node.
    """

    address: str
    num_engines: int | None = None
    num_gpus: float | None = None
    num_cpus: float | None = None

    def __post_init__(self) -> None:
        if self.num_engines is not None and self.num_engines < 1:
            raise BadSetting(f"the number of engines is {self.num_engines}: give at least 1")
        for name, number in (("num_gpus", self.num_gpus), ("num_cpus", self.num_cpus)):
            if number is not None and not 0 <= number < math.inf:
                raise BadSetting(f"{name} is {number}: give 0 or more")

    def resolve(self, nodes: Sequence[dict[str, Any]]) -> RayOptions:
        """The options with a number in the place of each None.

        Args:
            nodes: the cluster's, as `ray.nodes()` returns them.

        Raises:
            BadSetting: no node has what an engine needs.
        """
        resources = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
        cluster_gpus = int(sum(one.get("GPU", 0) for one in resources))
        num_gpus = self.num_gpus if self.num_gpus is not None else min(cluster_gpus, 1)
        if num_gpus:
            resources = [one for one in resources if one.get("GPU", 0) >= num_gpus]
        num_engines = self.num_engines or (cluster_gpus if num_gpus else len(resources)) or 1
        num_cpus = self.num_cpus
        if num_cpus is None:
            smallest = min((int(one["CPU"]) for one in resources), default=1)
            num_cpus = max(1, smallest // math.ceil(num_engines / max(len(resources), 1)))
        if not any(one["CPU"] >= num_cpus for one in resources):
            raise BadSetting(
                f"no node of the Ray cluster has the {num_cpus:g} CPUs and {num_gpus:g} GPUs of an engine: change "
                "--num-cpus and --num-gpus; `ray status` lists what there is"
            )
        return RayOptions(address=self.address, num_engines=num_engines, num_gpus=num_gpus, num_cpus=num_cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine loads, and what it does with rows; sent to the nodes.

    Attributes:
        load_keywords: the arguments of `idefics.load`, the model among them.
        fingerprint: of the checkpoint that all engines must have; see `fingerprint_checkpoint`.
        shots: the few-shot examples.
        task: a key of `TASKS`.
        options: the options of the task.
    """

    load_keywords: dict[str, Any]
    fingerprint: str
    shots: Sequence[Shot]
    task: str
    options: dict[str, Any]

    def with_threads(self, threads: int) -> EngineSpec:
        """The spec with a number of CPU threads for each engine, unless it says one."""
        keywords = self.load_keywords
        return replace(self, load_keywords=keywords | {"threads": keywords.get("threads") or threads})

    def with_picture_bytes(self) -> EngineSpec:
        """The spec with the content of the files of its shots, which need not be on the nodes.

        Raises:
            BadPicture: a file cannot be read.
        """
        shots = [
            replace(shot, picture=replace(shot.picture, source=read_shot_picture(shot.picture.source)))
            if isinstance(shot.picture.source, Path)
            else shot
            for shot in self.shots
        ]
        return replace(self, shots=shots)

    def create_answerer(self, load_model: Callable[[], Idefics]) -> Answerer:
        """What answers the rows in one process.

        Args:
            load_model: loads the model, without shots.
        """
        return LocalAnswerer(lambda: load_model().with_shots(self.shots), self.task, self.options)


class RayEngine:
    """A Ray actor: a model that answers blocks of rows, two at a time."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec

    def load(self) -> int:
        """Loads the model, and returns how many sequences its engine decodes in one step.

        Raises:
            IdeficsError: it cannot be loaded, or this node has another checkpoint of that name.
        """
        import idefics
        from idefics import weights

        keywords = self._spec.load_keywords
        vlm = idefics.load(**keywords)
        folder = weights.find_checkpoint(keywords["model"], revision=keywords.get("revision"), offline=True)
        adapter = keywords.get("adapter")
        adapter_fingerprint = (
            ""
            if adapter is None
            else weights.fingerprint_adapter(weights.find_adapter(adapter, offline=True))
        )
        fingerprint = fingerprint_checkpoint(folder, weights.safetensors_files(folder), adapter_fingerprint)
        if fingerprint != self._spec.fingerprint:
            raise ModelError(
                f"{folder} on a node of the Ray cluster is another checkpoint than the one on this machine, or has "
                "another adapter: name a "
                "commit with --revision, or a folder that all nodes share"
            )
        self._answerer = self._spec.create_answerer(lambda: vlm)
        return vlm.engine.config.batch_rows

    def answer(self, items: Sequence[WorkItem]) -> list[tuple[bytes, dict[str, Any]]]:
        """The key and the fields of the answer of each item; see `Answerer.answer`."""
        return list(self._answerer.answer(iter(items)))
