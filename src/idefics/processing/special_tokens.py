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
from idefics.processing import settings
from idefics.processing.templates import render_template

IMAGE_PLACEHOLDER = re.compile(r"<image>|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>")
# How vocabularies of language models name what steers them. The first kind has no other meaning in any of them.
BASE_CONTROL = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>")
CONTROL_NAME = re.compile(
    rf"{BASE_CONTROL.pattern}|{IMAGE_PLACEHOLDER.pattern}|<video>"
    r"|</?s>|<(unk|pad|bos|eos|cls|sep|mask)>|\[(UNK|PAD|BOS|EOS|CLS|SEP|MASK)\]"
    r"|<(start|end)_of_(turn|utterance|text|role|image)>|<fim_\w+>"
    # SmolLM2's, which StarCoder had first: where files, issues and notebooks begin in its training data.
    r"|<(repo_?name|file_sep|filename|gh_stars|issue_(start|comment|closed)|empty_output)>"
    r"|<(jupyter_(start|text|code|output|script)|commit_(before|msg|after))>"
    r"|\[/?(INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END)\]"
)
NAME_STARTS = ("<", "[")  # of control names; what begins otherwise need not be looked at
# A checkpoint that has one of these writes pages as DocTags, and its card asks it with tags: `<otsl>`, `<formula>`,
# `<code>`, `<chart>`, `<loc_12>`.
DOCTAGS = ("<doctag>", "<otsl>")

# What a template is shown to see which tokens it writes.
PROBES = [
    [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in roles]
    for roles in (("user",), ("user", "assistant"), ("system", "user", "assistant", "user"))
]


@dataclass(frozen=True, slots=True)
class Declared:
    """What a checkpoint's files say of its tokens.

    Attributes:
        names: tokens with a role, such as `eos_token` or `image_token`.
        special: tokens that are marked special, whatever `tokenizer.json` says of them.
        ids: the same by id, stop ids among them.
        template: the chat template, or "".
        roles: the tokens with a role by their role, as templates read them.
    """

    names: frozenset[str] = frozenset()
    special: frozenset[str] = frozenset()
    ids: frozenset[int] = frozenset()
    template: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Declared:
        """From the small files of a checkpoint folder.

        Raises:
            UnsupportedModel: one of them is broken.
        """
        roles = settings.special_tokens(folder)
        config = settings.json_object(folder / "config.json")
        sources = (config, config.get("text_config"), settings.json_object(folder / "generation_config.json"))
        ids = frozenset(id for source in sources for id in _token_ids(source))
        return cls(
            names=frozenset(roles.values()),
            special=settings.marked_special(folder),
            ids=ids,
            template=settings.chat_template(folder),
            roles=roles,
        )


def _token_ids(source: Any) -> Iterator[int]:
    for name, value in source.items() if isinstance(source, Mapping) else ():
        if name.endswith("_token_id"):
            yield from (id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """A checkpoint's special tokens by their kind, as ids.

    Attributes:
        control: hidden in answers unless they are asked for; plain characters in users' text.
        content: shown in answers unless they are asked not to be.
        instructions: content that is honoured in users' text.
    """

    control: frozenset[int]
    content: frozenset[int]
    instructions: frozenset[int]

    def hidden(self, skip_special_tokens: bool | None) -> frozenset[int]:
        """Which ids an answer's text leaves out: control tokens (None), every special token (True) or none (False)."""
        if skip_special_tokens is None:
            return self.control
        return self.control | self.content if skip_special_tokens else frozenset()


def classify(
    vocabulary: Mapping[str, int], added: Mapping[int, str], special: Collection[int], declared: Declared
) -> SpecialTokens:
    """Applies the rule.

    Args:
        vocabulary: the tokens of the model's own vocabulary that begin as names do, and their ids.
        added: id -> name of each token that `tokenizer.json` adds to it or lifts out of it.
        special: those that it marks special.
        declared: what the other files say. Without a control token's name, one of the vocabulary's own tokens is left
            alone: such files are often those of another vocabulary, and would hide an ordinary word.
    """
    written = _written(declared)
    control = {
        id
        for id, name in added.items()
        if id in declared.ids
        or name in declared.names
        or CONTROL_NAME.fullmatch(name)
        or (id in special and name in written)
    }
    control.update(
        id
        for name, id in vocabulary.items()
        if BASE_CONTROL.fullmatch(name) or (name in declared.names and CONTROL_NAME.fullmatch(name))
    )
    is_docling = any(name in DOCTAGS for name in added.values())
    return SpecialTokens(
        control=frozenset(control),
        content=frozenset(special) - control,
        instructions=frozenset(added) - control if is_docling else frozenset(),
    )


def _written(declared: Declared) -> str:
    """A template's source, and what it writes of short conversations: a name may be put together from parts."""
    if not declared.template:
        return ""
    texts = [declared.template]
    for probe in PROBES:
        try:
            texts.append(render_template(declared.template, probe, declared.roles).text)
        except (BadPrompt, UnsupportedModel):  # it refuses such a conversation
            continue
    return "\n".join(texts)
