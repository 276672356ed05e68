"""The description of the served model: its limits, its defaults, and what this server does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from idefics import __version__
from idefics.catalog import find_entry
from idefics.config import Sampling
from idefics.errors import BadRequest
from idefics.explain.explanation import Method
from idefics.explain.relative_attention import has_token_grid
from idefics.formats import UNTRUSTED_IMAGE_FORMATS
from idefics.messages import Detail, ImageDetail
from idefics.processing.picture_expansion import compute_image_cost
from idefics.processing.picture_files import readable_formats
from idefics.processing.tile_plan import MAX_EDGE
from idefics.processing.untrusted import MAX_UNTRUSTED_PIXELS
from idefics.server.chat_messages import MAX_PICTURES, MAX_VIDEO_FRAMES
from idefics.server.response_fields import ResponseFields
from idefics.server.sampling_fields import DEFAULT_MAX_NEW_TOKENS
from idefics.server.server_state import ServerState
from idefics.server.settings import is_loopback_host
from idefics.tasks import TASKS


class ModelImages(ResponseFields):
    """Which pictures a request may have, and what one costs at most.

    `max_pixels` and `max_bytes` are those of one picture, `max_images` and `max_body_bytes` those of a request, where
    base64 takes 4 bytes for 3. `max_tiles` and `max_tokens` are those of the largest picture in the default `detail`.
    """

    media_types: list[str]
    max_pixels: int
    max_bytes: int
    max_body_bytes: int
    max_images: int
    detail: Detail
    max_tiles: int
    max_tokens: int
    remote: bool


class ModelVideo(ResponseFields):
    """How many frames a second the model is shown of a video, and how many at most."""

    fps: float
    max_frames: int


class ModelSampling(ResponseFields):
    """The values of a chat that gives none."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int


class ModelLoading(ResponseFields):
    """The arguments of `idefics.load`, and flags of the command line, that give the same model; null: the default."""

    model: str
    revision: str | None
    adapter: str | None
    quantize: str | None
    dtype: str | None


class ModelTask(ResponseFields):
    """A task that the model can do: what its `words` are (null: it takes none), and the defaults of its fields."""

    words: str | None
    default_words: str | None
    max_new_tokens: int


class ModelCard(ResponseFields):
    """The description of a served model.

    `kind` is "base" for a model that continues documents. `is_demo`: it knows nothing but its picture book.
    `max_model_len` is the largest number of tokens of a prompt and its answer together. `video` is null where the
    model takes none. `explain` has the methods of explanations. `batches`: whether the server has files and batches.
    `parent` is the model whose weights an adapter shares, `root` where it is from. `needs_key`: whether requests must
    have an API key. `compare_with`: the addresses of other servers with which the page may compare answers.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["idefics"]
    root: str
    parent: str | None
    load: ModelLoading
    version: str
    family: str
    kind: Literal["base", "chat"]
    num_parameters: int
    is_demo: bool
    max_model_len: int
    images: ModelImages
    video: ModelVideo | None
    sampling: ModelSampling
    tasks: dict[str, ModelTask]
    explain: list[Method]
    batches: bool
    needs_key: bool
    compare_with: list[str]


def model_card(service: ServerState, name: str, created: int) -> ModelCard:
    """The description of the served model, or of one of its adapters.

    Args:
        name: of the model.
        created: when the server was started, in seconds of Unix time.
    """
    settings, model = service.settings, service.vlm.loaded_model
    adapter = settings.adapter_by_name.get(name)
    merged = adapter or settings.adapter
    # Paths are given whole where only this machine reaches the server.
    is_public = settings.has_key or bool(settings.allowed_hosts) or not is_loopback_host(settings.host)
    entry, video = find_entry(settings.model), model.processor.image_config.video
    defaults = Sampling(repetition_penalty=model.generation_config.repetition_penalty)
    methods: list[Method] = ["occlusion", "fast"] if has_token_grid(model) else ["occlusion"]
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "idefics",
        "root": _public_source(adapter or settings.model),
        "parent": None if adapter is None else settings.served_model_name,
        "load": {
            "model": _loaded_source(settings.model, is_public),
            "revision": settings.revision,
            "adapter": None if merged is None else _loaded_source(merged, is_public),
            "quantize": settings.quantize,
            "dtype": None if settings.dtype == "auto" else settings.dtype,
        },
        "version": __version__,
        "family": entry.family if entry else model.family,
        "kind": model.processor.prompt_format.kind,
        "num_parameters": model.num_parameters,
        "is_demo": entry is not None and bool(entry.package_folder) and not merged,
        "max_model_len": model.engine.model.layout.max_positions,
        "images": _images(service),
        "video": None
        if video is None
        else {"fps": video.fps, "max_frames": min(video.max_frames, MAX_VIDEO_FRAMES)},
        "sampling": {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "min_p": defaults.min_p,
            "repetition_penalty": defaults.repetition_penalty,
            "presence_penalty": defaults.presence_penalty,
            "frequency_penalty": defaults.frequency_penalty,
            "max_tokens": DEFAULT_MAX_NEW_TOKENS,
        },
        "tasks": _tasks(service),
        "explain": methods,
        "batches": settings.batches is not None,
        "needs_key": settings.has_key,
        "compare_with": settings.compared_servers,
    }


def _loaded_source(source: str, is_public: bool) -> str:
    """A short name or hub id; or an absolute path, which is never one; of a public server its last part is right."""
    path = Path(source).expanduser()
    if find_entry(source) is not None or not path.exists():
        return source
    return f"/path/to/{path.absolute().name}" if is_public else str(path.absolute())


def _public_source(source: str) -> str:
    """A short name or hub id; of a path on this machine the last part."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _images(service: ServerState) -> ModelImages:
    """The limits of pictures."""
    processor, settings = service.vlm.processor, service.settings
    max_body_bytes = settings.body_megabytes << 20
    detail = ImageDetail()
    largest = compute_image_cost(processor, MAX_EDGE, MAX_EDGE, detail)
    return {
        "media_types": [
            f"image/{one.title.lower()}" for one in UNTRUSTED_IMAGE_FORMATS if one in readable_formats()
        ],
        "max_pixels": MAX_UNTRUSTED_PIXELS,
        "max_bytes": min(processor.fetcher.max_bytes, max_body_bytes),
        "max_body_bytes": max_body_bytes,
        "max_images": MAX_PICTURES,
        "detail": detail.detail,
        "max_tiles": largest.num_frames,
        "max_tokens": largest.num_tokens,
        "remote": settings.remote_images != "off",
    }


def _tasks(service: ServerState) -> dict[str, ModelTask]:
    """The tasks that the model can do, by name."""
    tasks: dict[str, ModelTask] = {}
    for name, task in TASKS.items():
        try:
            service.vlm.check_task(task)
        except BadRequest:
            continue
        tasks[name] = {
            "words": task.words_name or None,
            "default_words": task.default_words,
            "max_new_tokens": task.max_new_tokens,
        }
    return tasks
