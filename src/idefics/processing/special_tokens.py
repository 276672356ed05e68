"""Classifies a checkpoint's special tokens as control tokens or content; one rule for all checkpoints.

Control tokens: begin, end, padding, unknown and stop ids, image placeholders, tokens that the chat template writes, and
names such as `<|im_start|>`. They are hidden in answers, and plain characters in what a user writes. Every other
special token is content, such as DocTags or the actions of a fine-tune. It is shown in answers; in what a user writes
it is plain characters too, except for instruction tokens that the model's card tells users to write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idefics.errors import BadPrompt, UnsupportedModel
from idefics.processing import checkpoint_settings
from idefics.processing.chat_template import render_template

IMAGE_PLACEHOLDER_PATTERN = re.compile(r"<image>|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>")
# Names of control tokens in vocabularies of language models. The first pattern has no other meaning in any of them.
BASE_CONTROL_PATTERN = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>")
CONTROL_TOKEN_PATTERN = re.compile(
    rf"{BASE_CONTROL_PATTERN.pattern}|{IMAGE_PLACEHOLDER_PATTERN.pattern}|<video>"
    r"|</?s>|<(unk|pad|bos|eos|cls|sep|mask)>|\[(UNK|PAD|BOS|EOS|CLS|SEP|MASK)\]"
    r"|<(start|end)_of_(turn|utterance|text|role|image)>|<fim_\w+>"
    # SmolLM2's, from StarCoder: beginnings of files, issues and notebooks in its training data.
    r"|<(repo_?name|file_sep|filename|gh_stars|issue_(start|comment|closed)|empty_output)>"
    r"|<(jupyter_(start|text|code|output|script)|commit_(before|msg|after))>"
    r"|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END)\]"
)
CONTROL_TOKEN_PREFIXES = ("<", "[")  # every control token begins with one of these
# A checkpoint that has one of these writes pages as DocTags, and its card has users write tags in instructions:
# `<otsl>`, `<formula>`, `<code>`, `<chart>`, `<loc_12>`.
DOCTAG_TOKENS = ("<doctag>", "<otsl>")

# Conversations that are rendered to find the tokens that a template writes.
PROBE_CONVERSATIONS = [
    [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in roles]
    for roles in (("user",), ("user", "assistant"), ("system", "user", "assistant", "user"))
]


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """What a checkpoint's files other than `tokenizer.json` declare about its tokens.

    Attributes:
        special_tokens: tokens that have a role or that tokenizer_config.json marks special, whatever `tokenizer.json`
            says.
        ids: ids with a role, such as stop ids and `image_token_id`.
        chat_template: the chat template, or "".
        token_by_role: the tokens by the name of their role, such as "eos_token"; variables of chat templates.
    """

    special_tokens: frozenset[str] = frozenset()
    ids: frozenset[int] = frozenset()
    chat_template: str = ""
    token_by_role: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> DeclaredTokens:
        """Reads the declarations from the small files of a checkpoint folder.

        Raises:
            UnsupportedModel: one of them is broken.
        """
        tokenizer_config = checkpoint_settings.read_json_object(folder / "tokenizer_config.json")
        token_by_role = _tokens_by_role(
            checkpoint_settings.read_json_object(folder / "special_tokens_map.json"),
            tokenizer_config.get("extra_special_tokens"),  # transformers 5
            tokenizer_config,
        )
        added_tokens = tokenizer_config.get("added_tokens_decoder")
        marked_tokens = {
            _token_content(token)
            for token in (added_tokens.values() if isinstance(added_tokens, Mapping) else ())
            if isinstance(token, Mapping) and token.get("special")
        }
        config = checkpoint_settings.read_json_object(folder / "config.json")
        sources = (
            config,
            config.get("text_config"),
            checkpoint_settings.read_json_object(folder / "generation_config.json"),
        )
        return cls(
            special_tokens=frozenset(marked_tokens.union(token_by_role.values())),
            ids=frozenset(id for source in sources for id in _declared_token_ids(source)),
            chat_template=checkpoint_settings.read_chat_template(folder),
            token_by_role=token_by_role,
        )


def _tokens_by_role(*sources: Any) -> dict[str, str]:
    """The tokens in the fields `*_token` of some dicts, by the field's name; later dicts replace earlier ones."""
    return {
        name: content
        for source in sources
        for name, token in (source.items() if isinstance(source, Mapping) else ())
        if name.endswith("_token") and (content := _token_content(token))
    }


def _token_content(token: Any) -> str:
    """The text of a token that a file gives as a text or as a dict with "content"; "" if it is neither."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _declared_token_ids(source: Any) -> Iterator[int]:
    """All ids in the fields `*_token_id` of a config; none if it is no dict."""
    for name, value in source.items() if isinstance(source, Mapping) else ():
        if name.endswith("_token_id"):
            yield from (id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))


@dataclass(frozen=True, slots=True)
class SpecialTokenIds:
    """The ids of a checkpoint's special tokens by kind.

    Attributes:
        control_ids: hidden in answers by default; plain characters in users' text.
        content_ids: shown in answers by default; plain characters in users' text.
        instruction_ids: recognised in users' text too.
        writes_doctags: whether the checkpoint writes pages down as DocTags.
    """

    control_ids: frozenset[int]
    content_ids: frozenset[int]
    instruction_ids: frozenset[int]
    writes_doctags: bool

    def hidden_ids(self, skip_special_tokens: bool | None) -> frozenset[int]:
        """The ids that are left out of an answer's text.

        Args:
            skip_special_tokens: None: control tokens are left out; True: all special tokens; False: none.
        """
        if skip_special_tokens is None:
            return self.control_ids
        return self.control_ids | self.content_ids if skip_special_tokens else frozenset()


def classify_special_tokens(
    id_by_token: Mapping[str, int],
    added_token_by_id: Mapping[int, str],
    special_ids: Collection[int],
    declared: DeclaredTokens,
) -> SpecialTokenIds:
    """Classifies a checkpoint's special tokens as control tokens, content or instructions, by the same rule for all.

    Args:
        id_by_token: tokens of the vocabulary itself that begin with one of `CONTROL_TOKEN_PREFIXES`, and their ids.
        added_token_by_id: the added tokens of `tokenizer.json`.
        special_ids: ids of tokens that are marked special.
        declared: what the other files declare. They are often copied from a checkpoint with another vocabulary: a token
            of the vocabulary itself counts as declared only where its name is that of a control token.
    """
    template_text = _template_source_and_outputs(declared)
    role_tokens = set(declared.token_by_role.values())
    control = {
        id
        for id, name in added_token_by_id.items()
        if id in declared.ids
        or name in role_tokens
        or CONTROL_TOKEN_PATTERN.fullmatch(name)
        or (id in special_ids and name in template_text)
    }
    control.update(
        id
        for name, id in id_by_token.items()
        if BASE_CONTROL_PATTERN.fullmatch(name)
        or (name in role_tokens and CONTROL_TOKEN_PATTERN.fullmatch(name))
    )
    writes_doctags = any(name in DOCTAG_TOKENS for name in added_token_by_id.values())
    return SpecialTokenIds(
        control_ids=frozenset(control),
        content_ids=frozenset(special_ids) - control,
        instruction_ids=frozenset(added_token_by_id) - control if writes_doctags else frozenset(),
        writes_doctags=writes_doctags,
    )


def _template_source_and_outputs(declared: DeclaredTokens) -> str:
    """A chat template's source and what it renders for short conversations, as one text in which tokens are searched.

    Both, since a template may assemble a token's name from parts.
    """
    if not declared.chat_template:
        return ""
    texts = [declared.chat_template]
    for probe in PROBE_CONVERSATIONS:
        try:
            texts.append(render_template(declared.chat_template, probe, declared.token_by_role).text)
        except (BadPrompt, UnsupportedModel):  # it refuses such a conversation
            continue
    return "\n".join(texts)
