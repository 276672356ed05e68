"""The flags of a run on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from idefics.cli.command import load_keywords
from idefics.cli.flags import ModelFlags, flag, flag_group
from idefics.errors import BadSetting

if TYPE_CHECKING:
    from idefics import Shot
    from idefics.batch.ray_engine import EngineSpec
    from idefics.batch.ray_pool import RayAnswerer
    from idefics.batch.run_settings import RunSettings

ray_flag = partial(flag, "Ray")


@flag_group
class RayFlags:
    """The flags that have engines on a Ray cluster answer the rows."""

    ray: str | None = ray_flag(
        "Have engines on a Ray cluster answer: auto (the cluster that this machine is a node of), HOST:PORT of its "
        "head node, or local (this machine).",
        metavar="ADDRESS",
    )
    ray_engines: int | None = ray_flag("Number of engines; as many as there are GPUs, else nodes.")
    num_gpus: float | None = ray_flag("GPUs of each engine, such as 1 or 0.5.", metavar="X")
    num_cpus: float | None = ray_flag("CPUs of each engine; as many as its node has for it.", metavar="X")

    def create_answerer(
        self, settings: RunSettings, model: ModelFlags, shots: Sequence[Shot], options: dict[str, Any]
    ) -> RayAnswerer | None:
        """What answers the rows on the cluster that `--ray` names; None without it.

        Args:
            settings: the settings of the run.
            model: which model the engines load, and how.
            shots: the few-shot examples.
            options: the options of the task.

        Raises:
            BadSetting: a flag belongs to `--ray`, which is not given, or its value is not allowed.
            MissingExtra: Ray is not installed.
        """
        from idefics.batch.ray_engine import EngineSpec

        return self.create_answerer_of(
            lambda: EngineSpec(
                load_keywords=load_keywords(model),
                fingerprint=settings.fingerprint,
                shots=shots,
                task=settings.task,
                options=options,
            )
        )

    def create_answerer_of(self, create_spec: Callable[[], EngineSpec]) -> RayAnswerer | None:
        """As `create_answerer`, for engines that load and compute what a spec says."""
        from idefics.batch.ray_engine import RayOptions
        from idefics.batch.ray_pool import RayAnswerer

        if self.ray is None:
            for name in ("ray_engines", "num_gpus", "num_cpus"):
                if getattr(self, name) is not None:
                    raise BadSetting(
                        f"--{name.replace('_', '-')} is for runs on a Ray cluster: give --ray too"
                    )
            return None
        cluster = RayOptions(
            address=self.ray, num_engines=self.ray_engines, num_gpus=self.num_gpus, num_cpus=self.num_cpus
        )
        return RayAnswerer(cluster, create_spec())
