"""tokenizer.json of small hand-written tokenizers, of the kinds that the released checkpoints have."""

from __future__ import annotations

from typing import Any

ASCII_CHARACTERS = "".join(map(chr, range(33, 127)))
FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
VOCABULARY_WORDS = (
    *("User", "Assistant", "Frame", "You", " the", " picture", " is", " What", " of", " a", " from", " this"),
    *(" following", " series", " frames", " video", " provided", " are", "row", "col", "global"),
)


def llama_tokenizer(*, has_end_of_utterance: bool, adds_bos: bool = False) -> dict[str, Any]:
    """Like Idefics 1's and 2's: "▁" before every segment, byte fallback.

    Args:
        has_end_of_utterance: whether `<end_of_utterance>` is a token.
        adds_bos: whether it adds `<s>` at the beginning, as Idefics 2's does.
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
    leading_tokens, trailing_tokens = (
        ["<unk>", "<s>", "</s>"],
        [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, *([END_OF_UTTERANCE] if has_end_of_utterance else [])],
    )
    return {
        **_tokenizer_json(
            leading_tokens,
            [*bytes_, "▁", *ASCII_CHARACTERS],
            "▁",
            trailing_tokens,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": template if adds_bos else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def byte_level_tokenizer(*, has_tile_tokens: bool) -> dict[str, Any]:
    """Like Idefics 3's and SmolVLM's: byte-level BPE, single digits.

    Args:
        has_tile_tokens: whether row, column and global tags are tokens, as in the smaller SmolVLMs; else they are text.
    """
    tile_tokens = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    trailing_tokens = [
        *(["<global-img>", *tile_tokens] if has_tile_tokens else []),
        FAKE_IMAGE_TOKEN,
        IMAGE_TOKEN,
        END_OF_UTTERANCE,
    ]
    byte_level_step = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **_tokenizer_json(
            ["<|im_start|>"], [*"ĠĊÃ©", *ASCII_CHARACTERS], "Ġ", trailing_tokens
        ),  # GPT-2's spelling of space, line break and é
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level_step]},
        "post_processor": None,
        "decoder": byte_level_step,
    }


def id_by_token(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The id of every token."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    return vocabulary


def _tokenizer_json(
    leading_tokens: list[str],
    characters: list[str],
    space_character: str,
    trailing_tokens: list[str],
    **model_options: str | bool,
) -> dict[str, Any]:
    """The vocabulary parts of the file: special tokens, characters, merged prefixes of the words, special tokens."""
    words = [word.replace(" ", space_character) for word in VOCABULARY_WORDS]
    merges = list(dict.fromkeys((word[:cut], word[cut]) for word in words for cut in range(1, len(word))))
    tokens = [*leading_tokens, *characters, *map("".join, merges), *trailing_tokens]
    id_by_token_text = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_by_token_text[token], "content": token, **flags}
            for token in [*leading_tokens, *trailing_tokens]
        ],
        "model": {
            "type": "BPE",
            "vocab": id_by_token_text,
            "merges": [list(pair) for pair in merges],
            **model_options,
        },
    }
