"""The options of a call -> how its prompts are answered.

Knows options and a loaded model; does not know prompts.
"""

from __future__ import annotations

from typing import Any

from idefics.calls import checked_flag
from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.form import Form
from idefics.options import Wishes
from idefics.pipeline.answering import Asking
from idefics.pipeline.arguments import strings
from idefics.pipeline.loading import Loaded
from idefics.processing.generation_rules import FILE, GenerationRules
from idefics.processing.guides import limits


def asking_for(model: Loaded, began: float, wishes: Wishes, start: str, continues: bool) -> Asking:
    """How the prompts of a call are answered.

    Args:
        model: whose engine, tokens and stop ids are used.
        began: when the caller asked.
        wishes: the options of the call.
        start, continues: as in `Asking`.

    Raises:
        BadSetting: an option is wrong.
    """
    chosen: dict[str, Any] = dict(wishes)
    skip = chosen.pop("skip_special_tokens", None)
    if skip is not None:
        checked_flag("skip_special_tokens", skip)
    tokenizer = model.processor.tokenizer
    hidden = tokenizer.special_tokens.hidden(skip)
    stops, banned = (strings(name, chosen.pop(name, ())) for name in ("stop", "banned"))
    form = Form.of(*(chosen.pop(name, None) for name in ("regex", "choices", "schema")))
    rules = model.rules
    sampling = Sampling(**{"repetition_penalty": rules.repetition_penalty, **chosen})
    stops = (*stops, *rules.stop_strings)
    _check_rules(rules, form, sampling)
    # A hidden token has no text that a stop string could be found in: its name stops by its id.
    named = {id for stop in stops if (id := tokenizer.token_id(stop)) in hidden and id is not None}
    return Asking(
        engine=model.engine,
        tokenizer=tokenizer,
        sampling=sampling,
        stop_ids=model.stop_ids | named,
        banned_ids=model.banned_ids,
        rules=rules,
        stops=stops,
        limits=None
        if form is None and not banned
        else limits(form, banned, model.spelling(skip), lambda form: model.shape(form, skip)),
        hidden=hidden,
        start=start,
        continues=continues,
        began=began,
    )


def _check_rules(rules: GenerationRules, form: Form | None, sampling: Sampling) -> None:
    """Refuses what cannot be combined with what the checkpoint asks of each step."""
    names = rules.stepwise
    if names and form is not None:
        raise BadSetting(
            f"{form.name} is given, and {FILE} of this checkpoint sets {', '.join(names)}, which may not leave a text "
            f"of that form: leave {form.name} out, or take these out of the file"
        )
    if rules.renormalize_logits:
        names = (*names, "renormalize_logits")
    if names and sampling.num_beams > 1:
        raise BadSetting(
            f"num_beams is {sampling.num_beams}, and {FILE} of this checkpoint sets {', '.join(names)}, which beam "
            "search does not support: use num_beams=1"
        )
