"""`Idefics`, the public class: a loaded model, with a method for each call that a user can make."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Self

import torch

from idefics import weights
from idefics.config import KernelMode, QuantizationConfig, QuantKind
from idefics.engine.engine import Engine
from idefics.errors import BadPrompt, BadSetting
from idefics.generation.load_settings import LoadSettings
from idefics.generation.loading import LoadedModel, load_model
from idefics.generation.prompt_scoring_mixin import PromptScoringMixin
from idefics.generation.text_generation_mixin import TextGenerationMixin
from idefics.messages import Shot
from idefics.placement.devices import DeviceLike
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.url_policy import UrlPolicy
from idefics.tasks.explanation_mixin import ExplanationMixin
from idefics.tasks.page_reading_mixin import PageReadingMixin
from idefics.tasks.ranking import RankingMixin
from idefics.tasks.row_mapping import RowMappingMixin
from idefics.validation import describe_type, reject_unknown_arguments, short_repr, validate_list


class Idefics(
    RowMappingMixin,
    PageReadingMixin,
    RankingMixin,
    ExplanationMixin,
    TextGenerationMixin,
    PromptScoringMixin,
):
    """A model that answers questions about pictures; `idefics.load` makes one.

    The methods `caption`, `complete`, `ask`, `write`, `read` and `classify` are the tasks: each takes one picture and
    returns one result, or takes a list of pictures and returns a list; `map` runs a task over any number of rows.
    `chat` takes conversations, `generate` raw prompts. `explain` says which parts of a picture an answer is based on.
    Any thread may call any method at any time; requests of all threads are generated in one batch.

    A picture is a path, bytes, an open file, a `PIL.Image`, a NumPy array, a torch tensor, an http(s) URL, a data URI
    or a `Picture` of these. A checkpoint trained with video also takes a video wherever a picture is taken: a video
    file, its bytes, a URL that ends like a video's, or a `Video`.

    A model is a context manager that closes itself.

    Args:
        loaded_model: the processor and the engine of a checkpoint.
        shots: few-shot examples, which the prompts of all tasks begin with.

    Attributes:
        loaded_model: the processor and the engine of the checkpoint.
        shots: the few-shot examples of `with_shots`.

    Examples:
        >>> with idefics.load("demo") as vlm:
        ...     print(vlm.ask("photo.jpg", "What is on the table?"))
    """

    def __init__(self, loaded_model: LoadedModel, shots: Sequence[Shot] = ()) -> None:
        self.loaded_model, self.shots = loaded_model, tuple(shots)

    @classmethod
    @reject_unknown_arguments
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        device: DeviceLike = "auto",
        dtype: str | torch.dtype = "auto",
        threads: int | None = None,
        device_map: DeviceLike | Mapping[str, DeviceLike] | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        quantize: QuantKind | QuantizationConfig | None = None,
        attn_implementation: str = "sdpa",
        kv_cache: float | str | None = None,
        batch_rows: int | None = None,
        kernels: KernelMode = "auto",
        revision: str | None = None,
        offline: bool | None = None,
        feature_cache: bool | None = None,
        remote_images: UrlPolicy = "any",
        progress: weights.ProgressCallback | None = None,
    ) -> Self:
        """Loads a model; a model of the hub is downloaded first if it is not on this machine.

        Args:
            model: a short name ("demo", "smolvlm-500m"; `idefics models` lists them), a folder or a hub id.
            adapter: a fine-tuned change of the model (LoRA, DoRA), as peft and transformers save it: its folder or hub
                id. It is merged into the weights while they are loaded.
            adapters: several of them, by names, that share the model's weights in memory; `with_adapter` chooses one.
            device: "auto" (CUDA, else Apple's GPU, else the CPU) or a torch device.
            dtype: "float32", "bfloat16", "float16" or "auto". On a GPU "auto" is the checkpoint's dtype. On a CPU
                "auto" stores the weights as in the checkpoint and computes in float32; a 16-bit dtype is the storage
                dtype, and also the dtype of computation if this CPU is faster with it.
            threads: the number of CPU threads, of the whole process; None: torch's default.
            device_map: instead of `device`, for several devices: "auto" spreads layers over all GPUs and puts in CPU
                memory what does not fit; or a dict from module names to devices, "" for all other modules.
            max_memory: with `device_map="auto"`, the limit of each GPU and of the CPU: {0: "10GiB", "cpu": "30GiB"}.
            quantize: quantize the decoder's weights: "int8", "int4", "fp8", "nf4" or "fp4" (the last two need
                `idefics[quant]`), or a `QuantizationConfig` with details.
            attn_implementation: "sdpa", "eager" (matrix products and a softmax) or "flash_attention_2".
            kv_cache: the memory for keys and values, the prefix cache included: bytes ("1GB", 10**9) or a share of the
                free memory (0.3). None: on a GPU 0.6 of the free memory; on a CPU as much as 16,384 tokens take (or the
                longest prompt, if that is shorter), but at least 512 MiB and at most 0.3 of the free memory.
            batch_rows: the largest number of sequences in a batch; None: 8, on a GPU 64.
            kernels: "auto" uses the C kernels and selects the matrix products by the kind of processor, so that equal
                processors compute equal numbers; "autotune" selects the products that a measurement finds fastest, so
                that numbers may differ between two machines or two days; "reference" uses torch's plain operations
                only.
            revision: branch, tag or commit on the hub.
            offline: True: never use the network; None: as IDEFICS_OFFLINE and HF_HUB_OFFLINE say.
            feature_cache: keep encoded pictures in files of the user's cache folder, so that a later process need not
                encode them again (on a CPU); None: as IDEFICS_FEATURE_CACHE says (1 or 0), else True.
            remote_images: the URLs from which pictures may be fetched: "any", "public" (no private addresses), "off",
                or hosts ("a.example,*.b.example").
            progress: called with (bytes done, bytes in all) during a download.

        Returns:
            The model, ready for calls.

        Raises:
            ModelError: the model is not found, not supported, or its weights do not fit its config.
            BadSetting: an argument is not one of its values, or cannot be used on this machine.
            OutOfMemory: weights or caches do not fit into the free memory, or a limit of the process or container.
            MissingExtra: an optional dependency is not installed.

        Examples:
            >>> vlm = idefics.load("HuggingFaceTB/SmolVLM-500M-Instruct", quantize="int8", kv_cache="1GB")
        """
        settings = LoadSettings(
            adapter=adapter,
            adapters={} if adapters is None else adapters,
            device=device,
            dtype=dtype,
            threads=threads,
            device_map=device_map,
            max_memory=max_memory,
            quantize=quantize,
            attn_implementation=attn_implementation,
            kv_cache=kv_cache,
            batch_rows=batch_rows,
            kernels=kernels,
            revision=revision,
            offline=offline,
            feature_cache=feature_cache,
            remote_images=remote_images,
            progress=progress,
        )
        return cls(load_model(model, settings))

    def close(self) -> None:
        """Closes the model and frees its memory and its thread. May be called twice.

        Running and later calls raise `ModelClosed`. Models made from this one by `with_shots`, `with_adapter` or
        `fetching` are closed too.
        """
        self.loaded_model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """Generates token ids for prompts; shared with models made by `with_shots`, `with_adapter` or `fetching`."""
        return self.loaded_model.engine

    @property
    def processor(self) -> Processor:
        """Makes prompts of text and pictures; has the tokenizer."""
        return self.loaded_model.processor

    @property
    def memory(self) -> int:
        """Size of the weights in bytes, on all devices; caches are not included.

        Raises:
            ModelClosed: the model is closed.
        """
        return self.loaded_model.memory

    @reject_unknown_arguments
    def with_shots(self, shots: Sequence[Shot]) -> Self:
        """Returns the same model (weights and caches are shared), whose tasks begin with few-shot examples.

        Args:
            shots: the examples, in their order; `read_shots` reads them from a file.

        Raises:
            BadPrompt: no list of `Shot`.

        Examples:
            >>> shots = [Shot(Picture("dog.jpg"), "A puppy on grass.")]
            >>> vlm.with_shots(shots).caption("cat.jpg")
        """
        shot_list = validate_list("shots", shots, "a list of Shot(Picture(...), answer)")
        for index, shot in enumerate(shot_list):
            if not isinstance(shot, Shot):
                raise BadPrompt(
                    f"shots[{index}] is {describe_type(shot)}; give Shot(Picture('photo.jpg'), 'A puppy.'), a picture "
                    "and the answer that it should have, or a file of them: read_shots('shots.jsonl')"
                )
        model = copy.copy(self)
        model.shots = tuple(shot_list)
        return model

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that share the model, as `load` was given them."""
        return tuple(adapter.name for adapter in self.engine.adapters.adapters)

    @reject_unknown_arguments
    def with_adapter(self, name: str | None) -> Self:
        """Returns the same model (weights and caches are shared), which answers with one of its adapters.

        Requests with different adapters, and without, are generated in one batch.

        Args:
            name: of `load(..., adapters={name: ...})`; None: the model without an adapter.

        Raises:
            BadSetting: there is no adapter of that name.

        Examples:
            >>> vlm = idefics.load("demo", adapters={"flags": "./flags", "plants": "./plants"})
            >>> vlm.with_adapter("flags").ask("photo.jpg", "Which country's flag is this?")
        """
        model = copy.copy(self)
        model.loaded_model = self.loaded_model.with_adapter(name)
        return model

    @reject_unknown_arguments
    def fetching(self, fetcher: Fetcher) -> Self:
        """Returns the same model (weights and caches are shared), which opens pictures with another fetcher.

        Args:
            fetcher: opens paths and URLs; one with `untrusted=True` opens no local file and limits picture sizes.

        Raises:
            BadSetting: no `Fetcher`.
        """
        value: object = fetcher
        if not isinstance(value, Fetcher):
            raise BadSetting(f"fetcher is {short_repr(value)}; give a Fetcher of idefics.processing.fetch")
        model = copy.copy(self)
        model.loaded_model = self.loaded_model.with_fetcher(fetcher)
        return model


load = Idefics.load
