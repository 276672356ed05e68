"""Which of a checkpoint's special tokens are control tokens, and which are content. The one rule for all of them.

Control tokens steer a model: begin, end, padding, unknown, stop ids, image placeholders, what the chat template writes,
and names such as `<|im_start|>`. They are hidden in answers, and plain characters in what a user writes. Every other
special token is content, such as DocTags or the actions of a fine-tune. It is shown in answers; in what a user writes
it is plain characters too, except where the model's card gives it as an instruction.

Knows names and files; does not know texts.
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
# How vocabularies of language models name what steers them. The first kind has no other meaning in any of them.
BASE_CONTROL_PATTERN = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>")
CONTROL_TOKEN_PATTERN = re.compile(
    rf"{BASE_CONTROL_PATTERN.pattern}|{IMAGE_PLACEHOLDER_PATTERN.pattern}|<video>"
    r"|</?s>|<(unk|pad|bos|eos|cls|sep|mask)>|\[(UNK|PAD|BOS|EOS|CLS|SEP|MASK)\]"
    r"|<(start|end)_of_(turn|utterance|text|role|image)>|<fim_\w+>"
    # SmolLM2's, which StarCoder had first: where files, issues and notebooks begin in its training data.
    r"|<(repo_?name|file_sep|filename|gh_stars|issue_(start|comment|closed)|empty_output)>"
    r"|<(jupyter_(start|text|code|output|script)|commit_(before|msg|after))>"
    r"|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END)\]"
)
CONTROL_TOKEN_PREFIXES = ("<", "[")  # of control names; what begins otherwise need not be looked at
# A checkpoint that has one of these writes pages as DocTags, and its card asks it with tags: `<otsl>`, `<formula>`,
# `<code>`, `<chart>`, `<loc_12>`.
DOCTAG_TOKENS = ("<doctag>", "<otsl>")

# What a template is shown to see which tokens it writes.
PROBE_CONVERSATIONS = [
    [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in roles]
    for roles in (("user",), ("user", "assistant"), ("system", "user", "assistant", "user"))
]


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """What a checkpoint's files say of its tokens.

    Attributes:
        role_tokens: tokens with a role, such as `eos_token` or `image_token`.
        special_tokens: tokens that are marked special, whatever `tokenizer.json` says of them.
        ids: the same by id, stop ids among them.
        chat_template: the chat template, or "".
        token_by_role: the tokens with a role by their role, as templates read them.
    """

    role_tokens: frozenset[str] = frozenset()
    special_tokens: frozenset[str] = frozenset()
    ids: frozenset[int] = frozenset()
    chat_template: str = ""
    token_by_role: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> DeclaredTokens:
        """From the small files of a checkpoint folder.

        Raises:
            UnsupportedModel: one of them is broken.
        """
        token_by_role = checkpoint_settings.read_special_tokens(folder)
        config = checkpoint_settings.read_json_object(folder / "config.json")
        sources = (
            config,
            config.get("text_config"),
            checkpoint_settings.read_json_object(folder / "generation_config.json"),
        )
        ids = frozenset(id for source in sources for id in _token_ids(source))
        return cls(
            role_tokens=frozenset(token_by_role.values()),
            special_tokens=checkpoint_settings.read_special_added_tokens(folder),
            ids=ids,
            chat_template=checkpoint_settings.read_chat_template(folder),
            token_by_role=token_by_role,
        )


def _token_ids(source: Any) -> Iterator[int]:
    for name, value in source.items() if isinstance(source, Mapping) else ():
        if name.endswith("_token_id"):
            yield from (id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """A checkpoint's special tokens by their kind, as ids.

    Attributes:
        control_ids: hidden in answers unless they are asked for; plain characters in users' text.
        content_ids: shown in answers unless they are asked not to be.
        instruction_ids: content that is honoured in users' text.
    """

    control_ids: frozenset[int]
    content_ids: frozenset[int]
    instruction_ids: frozenset[int]

    def hidden_ids(self, skip_special_tokens: bool | None) -> frozenset[int]:
        """Which ids an answer's text leaves out: control tokens (None), every special token (True) or none (False)."""
        if skip_special_tokens is None:
            return self.control_ids
        return self.control_ids | self.content_ids if skip_special_tokens else frozenset()


def classify_special_tokens(
    id_by_token: Mapping[str, int],
    added_token_by_id: Mapping[int, str],
    special_ids: Collection[int],
    declared: DeclaredTokens,
) -> SpecialTokens:
    """Applies the rule.

    Args:
        id_by_token: the tokens of the model's own vocabulary that begin as names do, and their ids.
        added_token_by_id: id -> name of each token that `tokenizer.json` adds to it or lifts out of it.
        special_ids: those that it marks special.
        declared: what the other files say. Without a control token's name, one of the vocabulary's own tokens is left
            alone: such files are often those of another vocabulary, and would hide an ordinary word.
    """
    template_text = _template_text(declared)
    control = {
        id
        for id, name in added_token_by_id.items()
        if id in declared.ids
        or name in declared.role_tokens
        or CONTROL_TOKEN_PATTERN.fullmatch(name)
        or (id in special_ids and name in template_text)
    }
    control.update(
        id
        for name, id in id_by_token.items()
        if BASE_CONTROL_PATTERN.fullmatch(name)
        or (name in declared.role_tokens and CONTROL_TOKEN_PATTERN.fullmatch(name))
    )
    is_docling = any(name in DOCTAG_TOKENS for name in added_token_by_id.values())
    return SpecialTokens(
        control_ids=frozenset(control),
        content_ids=frozenset(special_ids) - control,
        instruction_ids=frozenset(added_token_by_id) - control if is_docling else frozenset(),
    )


def _template_text(declared: DeclaredTokens) -> str:
    """A template's source, and what it writes of short conversations: a name may be put together from parts."""
    if not declared.chat_template:
        return ""
    texts = [declared.chat_template]
    for probe in PROBE_CONVERSATIONS:
        try:
            texts.append(render_template(declared.chat_template, probe, declared.token_by_role).text)
        except (BadPrompt, UnsupportedModel):  # it refuses such a conversation
            continue
    return "\n".join(texts)
