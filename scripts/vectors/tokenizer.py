"""Tokenizers of a few words, written out rather than trained: tokenizer.json of the kinds that checkpoints have."""

from __future__ import annotations

from typing import Any

ASCII = "".join(map(chr, range(33, 127)))
FAKE, IMAGE, TURN_END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
WORDS = (
    *("User", "Assistant", "Frame", "You", " the", " picture", " is", " What", " of", " a", " from", " this"),
    *(" following", " series", " frames", " video", " provided", " are", "row", "col", "global"),
)


def llama(*, turn_end: bool, starts: bool = False) -> dict[str, Any]:
    """As Idefics has it: a "▁" before every segment, bytes where a character is missing.

    Args:
        turn_end: whether it has `<end_of_utterance>`.
        starts: whether it puts `<s>` in front by itself, as Idefics 2's does.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in "\né".encode()]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    normalizers = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    first, last = ["<unk>", "<s>", "</s>"], [FAKE, IMAGE, *([TURN_END] if turn_end else [])]
    return {
        **_tokens(
            first, [*bytes_, "▁", *ASCII], "▁", last, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        ),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": template if starts else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def byte_level(*, tags: bool) -> dict[str, Any]:
    """As Idefics 3 and SmolVLM have it: every byte is a character, every digit stands by itself.

    Args:
        tags: whether the marks of tiles are tokens, as in the smaller SmolVLMs; else they are written as text.
    """
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    last = [*(["<global-img>", *tiles] if tags else []), FAKE, IMAGE, TURN_END]
    spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **_tokens(
            ["<|im_start|>"], [*"ĠĊÃ©", *ASCII], "Ġ", last
        ),  # GPT-2's spelling of space, line break and é
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, spelled]},
        "post_processor": None,
        "decoder": spelled,
    }


def ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The id of every token."""
    numbers: dict[str, int] = tokenizer["model"]["vocab"]
    return numbers


def _tokens(
    first: list[str], letters: list[str], space: str, last: list[str], **model: str | bool
) -> dict[str, Any]:
    """The parts of the file that hold tokens: special ones, letters, the words' beginnings, special ones."""
    words = [word.replace(" ", space) for word in WORDS]
    merges = list(dict.fromkeys((word[:cut], word[cut]) for word in words for cut in range(1, len(word))))
    tokens = [*first, *letters, *map("".join, merges), *last]
    numbers = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": numbers[token], "content": token, **flags} for token in [*first, *last]],
        "model": {"type": "BPE", "vocab": numbers, "merges": [list(pair) for pair in merges], **model},
    }
