"""Chat templates are rendered as transformers renders them; its own renderer is the reference."""

import pytest

from idefics.errors import BadPrompt
from idefics.processing.chat_template import render_template

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": 'é<b> "x" & y'}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is "}]},
]
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TRIMMING_TEMPLATE = PLAIN_TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | trim }}")
TEMPLATE_WITH_GENERATION_BLOCKS = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'][0]['text'] }}<end>{% endgeneration %}{% else %}?{% endif %}\n{% endfor %}"
)
TEMPLATES = {
    "plain": PLAIN_TEMPLATE,
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson }}",
    "sorted": "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    "tools": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
    "variables": "{{ bos_token }}{{ controls['length'] }}{{ picture }}{{ missing is defined }}",
    "trained": TEMPLATE_WITH_GENERATION_BLOCKS,
    "trained, with blanks trimmed": (
        "{%- for m in messages %}\n  {{- m['role'] + ':' }}\n  {%- if m['role'] == 'assistant' %}\n"
        "    {%- generation -%}\n {{ m['content'][0]['text'] }}\n<end>{%- endgeneration %}\n  {%- endif %}\n"
        "{%- endfor %}{% set ns = namespace(x=0) %}{% for m in messages %}{% generation %}{% set ns.x = ns.x + 1 %}"
        "{{ ns.x }}{% endgeneration %}{% endfor %}"
    ),
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
}
VARIABLES = {"bos_token": "<s>", "controls": {"length": 3}, "picture": object()}


def render_with_transformers(template, messages, **options):
    from transformers.utils.chat_template_utils import render_jinja_template

    mask = "generation" in template and not options.get("continue_final_message")
    texts, spans = render_jinja_template(
        [messages], chat_template=template, return_assistant_tokens_mask=mask, **options
    )
    return texts[0], spans[0] if mask else None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompts", [True, False])
def test_what_transformers_renders(name, prompts):
    text, spans = render_with_transformers(
        TEMPLATES[name], MESSAGES, add_generation_prompt=prompts, **VARIABLES
    )
    ours = render_template(TEMPLATES[name], MESSAGES, VARIABLES, add_generation_prompt=prompts)
    assert ours.text == text
    assert ours.generation_spans == (spans or [])


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, TRIMMING_TEMPLATE, TEMPLATE_WITH_GENERATION_BLOCKS])
@pytest.mark.parametrize("said", ["It is ", "It is", "", "a\n", "user: It is <end>"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_message_that_goes_on_ends_where_transformers_ends_it(template, said, as_text):
    if as_text:
        template = template.replace("m['content'][0]['text']", "m['content']").replace(
            "{% for part in m['content'] %}",
            "{% for part in ([{'type': 'text', 'text': m['content']}] if m['content'] is string else m['content']) %}",
        )
    last = {"role": "assistant", "content": said if as_text else [{"type": "text", "text": said}]}
    options = {"add_generation_prompt": False, "continue_final_message": True}
    text, _ = render_with_transformers(template, [MESSAGES[0], last], **options)
    assert render_template(template, [MESSAGES[0], last], **options).text == text


def test_what_is_cut_within_a_generation_block_is_generated():
    ours = render_template(
        TEMPLATE_WITH_GENERATION_BLOCKS, MESSAGES, add_generation_prompt=False, continue_final_message=True
    )
    assert ours.text == "user:?assistant:It is "
    assert [ours.text[start:end] for start, end in ours.generation_spans] == ["It is "]


def test_another_field_may_go_on():
    message = {"role": "assistant", "content": "no", "thoughts": "Well"}
    options = {"add_generation_prompt": False, "continue_final_message": "thoughts"}
    template = "{{ messages[0].thoughts }}|{{ messages[0].content }}"
    assert render_template(template, [message], **options).text == "Well"


@pytest.mark.parametrize(
    ("message", "template", "says"),
    [
        ({"role": "assistant", "content": [{"type": "image"}]}, PLAIN_TEMPLATE, "no text in its content"),
        ({"role": "assistant"}, PLAIN_TEMPLATE, "no text in its content"),
        ({"role": "assistant", "content": "x"}, "hello", "leaves the last message out"),
    ],
)
def test_what_cannot_go_on_is_refused(message, template, says):
    with pytest.raises(BadPrompt, match=says):
        render_template(template, [message], add_generation_prompt=False, continue_final_message=True)


def test_an_answer_cannot_both_begin_and_go_on():
    with pytest.raises(BadPrompt, match="add_generation_prompt and continue_final_message"):
        render_template(PLAIN_TEMPLATE, MESSAGES, continue_final_message=True)


def test_the_callers_messages_stay_as_they_are():
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    render_template(PLAIN_TEMPLATE, messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]


def test_what_is_no_data_offers_no_methods():
    """A template sees a picture object as the name of its type."""

    class Photo:
        def save(self):
            raise AssertionError("a template has called it")

    template = "{{ messages[0].content[0].image }}{{ messages[0].content[0].image.save is defined }}"
    message = {"role": "user", "content": [{"type": "image", "image": Photo()}]}
    assert render_template(template, [message]).text == "<Photo>False"
