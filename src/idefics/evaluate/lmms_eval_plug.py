"""The plug for lmms-eval 0.7: `lmms-eval --model idefics --model_args model=smolvlm-256m --tasks ...`.

lmms-eval finds it by the entry point `lmms_eval.models`. It generates, in one round or several; log-likelihoods of
chat models are not supported by lmms-eval itself, which turns their results into text: `idefics eval` ranks labels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import idefics
from idefics.errors import IdeficsError
from idefics.messages import ContentPart, Message, Picture, Video

MODEL_NAME, CLASS_NAME = "idefics", "LmmsEvalModel"
log = logging.getLogger(__name__)


def manifest() -> Any:
    """What lmms-eval registers: its `ModelManifest` with the path of the class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, chat_class_path=f"{__name__}.{CLASS_NAME}")


def __getattr__(name: str) -> Any:
    """The class, made when lmms-eval takes it: its base class is lmms-eval's."""
    if name == CLASS_NAME:
        return create_model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def create_model_class() -> type:
    """The class that lmms-eval makes of `--model idefics`; each keyword of `--model_args` is one of `idefics.load`."""
    from lmms_eval.api.model import lmms

    return type(
        CLASS_NAME, (LmmsEvalMethods, lmms), {"__doc__": LmmsEvalMethods.__doc__, "__module__": __name__}
    )


class LmmsEvalMethods:
    """A model of this package with the methods that lmms-eval calls; the other base class is lmms-eval's.

    Args:
        model: as in `idefics.load`.
        batch_size, max_batch_size: of lmms-eval; the engine makes its own batches.
        **load_options: other arguments of `idefics.load`; those of lmms-eval that are None are left out.

    Attributes:
        task_dict: the documents by task and split; lmms-eval fills it.
    """

    is_simple = False
    task_dict: dict[str, Any]

    def __init__(
        self, model: str = "demo", batch_size: int = 1, max_batch_size: int | None = None, **load_options: Any
    ) -> None:
        super().__init__()
        options = {name: value for name, value in load_options.items() if value is not None}
        self.vlm = idefics.load(model, **options)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises NotImplementedError: see the module."""
        raise NotImplementedError(
            "lmms-eval loses log-likelihoods of chat models: `idefics eval` ranks labels"
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer of each request, whose arguments are (context, doc_to_messages, options, id, task, split)."""
        texts: list[str] = [""] * len(requests)
        indices_by_options: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = json.dumps(request.args[2], sort_keys=True, default=str)
            indices_by_options.setdefault(key, []).append(index)
        for indices in indices_by_options.values():
            conversations = []
            for index in indices:
                _, doc_to_messages, _, id, task, split = requests[index].args
                conversations.append(to_messages(doc_to_messages(self.task_dict[task][split][id])))
            options = generation_options(requests[indices[0]].args[2])
            for index, text in zip(indices, self._answer(conversations, options), strict=True):
                texts[index] = text
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of all rounds of each request; the task says after each whether there is another one."""
        return [self._answer_rounds(request) for request in requests]

    def _answer_rounds(self, request: Any) -> list[str]:
        _, doc_to_messages, options, id, task, split = request.args
        document, info = self.task_dict[task][split][id], None
        messages, answers = doc_to_messages(document), list[str]()
        while True:
            answers += self._answer([to_messages(messages)], generation_options(options))
            payload = doc_to_messages(
                document, round_idx=len(answers), previous_output=list(answers), previous_round_info=info
            )
            if not isinstance(payload, tuple) or payload[1]:
                return answers
            messages, _, _, info = payload

    def _answer(self, conversations: list[list[Message]], options: dict[str, Any]) -> list[str]:
        """The answers; "" for a request that failed, with a line in the log."""
        results = self.vlm.chat(conversations, on_error="return", **options)
        for result in results:
            if isinstance(result, IdeficsError):
                log.warning("a request failed and counts as an empty answer: %s", result)
        return ["" if isinstance(result, IdeficsError) else str(result) for result in results]


def to_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of lmms-eval, whose parts are {"type": "text" | "image" | "video", "text" or "url"}."""
    return [Message(one["role"], tuple(map(_to_part, one["content"]))) for one in messages]


def _to_part(part: Mapping[str, Any]) -> ContentPart:
    """A part of a message; "url" is a picture in memory, a path or an address."""
    match part["type"]:
        case "text":
            return str(part["text"])
        case "image":
            return Picture(part["url"])
        case "video":
            return Video(part["url"])
    raise ValueError(f"a message has a part of the type {part['type']!r}: text, image and video are read")


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of lmms-eval ("max_new_tokens", "until", "do_sample", ...) as those of a call."""
    chosen: dict[str, Any] = {"max_new_tokens": int(options.get("max_new_tokens", 128))}
    until = options.get("until")
    if stop := [until] if isinstance(until, str) else [one for one in until or () if one]:
        chosen["stop"] = stop
    if options.get("do_sample") and (options.get("temperature") or 0) > 0:
        chosen |= {name: options[name] for name in ("temperature", "top_p") if options.get(name) is not None}
    elif (options.get("num_beams") or 1) > 1:
        chosen["num_beams"] = options["num_beams"]
    return chosen
