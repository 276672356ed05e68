"""The lines of OpenAI's batch files as rows of a report or a table: `OutputRecord`."""

from __future__ import annotations

from typing import Any

from idefics.batch.openai_batch import BatchLine
from idefics.batch.records import OutputRecord


def to_record(line: BatchLine, body: Any, output: Any, model: str) -> OutputRecord:
    """The row of a request and its line of the output.

    Args:
        line: the request; its `custom_id` stands for the path of the picture.
        body: its body, parsed.
        output: the line of the output, parsed.
        model: the name of the model.
    """
    fields: dict[str, Any] = {
        "id": line.custom_id,
        "path": line.custom_id,
        "task": line.url.rpartition("/")[2],
        "prompt": prompt_text(body),
        "model": model,
        "revision": "",
        "settings": {},
    }
    response = output["response"]
    if response is None:
        return OutputRecord(**fields, error_type=output["error"]["code"], error=output["error"]["message"])
    answer = response["body"]
    if response["status_code"] != 200:
        error_type = f"HTTP {response['status_code']}"
        return OutputRecord(**fields, error_type=error_type, error=answer["error"]["message"])
    usage = answer["usage"]
    return OutputRecord(
        **fields,
        **_answer_fields(answer),
        tokens=usage.get("completion_tokens", usage.get("output_tokens")),
        notes=answer.get("notes", []),
    )


def _answer_fields(answer: dict[str, Any]) -> dict[str, Any]:
    """The text of an answer of any of the routes, why it ended, and the probabilities of labels."""
    match answer:
        case {"labels": labels}:
            probabilities = {one["label"]: one["probability"] for one in labels}
            return {"text": labels[0]["label"], "probabilities": probabilities}
        case {"choices": [{"message": message, "finish_reason": finish}, *_]}:
            return {"text": message["content"], "finish": finish}
        case {"choices": [{"text": text, "finish_reason": finish}, *_]}:
            return {"text": text, "finish": finish}
        case {"output": [{"content": [{"text": text}]}], "status": status}:
            return {"text": text, "finish": "length" if status == "incomplete" else "stop"}
    return {"text": answer["text"], "finish": answer["finish_reason"]}


def prompt_text(body: Any) -> str:
    """The question or instruction of a request: the texts of its last message; "" if it has none.

    The request may be one that was refused, so that nothing is sure about it.
    """
    if not isinstance(body, dict):
        return ""
    for name in ("words", "prompt", "input"):
        if isinstance(body.get(name), str):
            return str(body[name])
    messages = body.get("messages", body.get("input"))
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def find_picture(body: Any) -> str | None:
    """The data URI of the picture that a request asks about: the last, but never that of an example; None without."""
    if isinstance(body, str):
        return body if body[:5].lower() == "data:" else None
    values: list[Any] = []
    if isinstance(body, dict):
        values = [value for name, value in body.items() if name != "shots"]
    elif isinstance(body, list):
        values = body
    return next((url for one in reversed(values) if (url := find_picture(one))), None)
