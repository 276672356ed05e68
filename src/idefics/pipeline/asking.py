"""The options of a call -> how its prompts are answered.

Knows options and a loaded model; does not know prompts.
"""

from __future__ import annotations

from typing import Any

from idefics.calls import checked_flag
from idefics.config import Sampling
from idefics.form import Form
from idefics.options import Wishes
from idefics.pipeline.answering import Asking
from idefics.pipeline.arguments import strings
from idefics.pipeline.loading import Loaded
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
    sampling = Sampling(**chosen)
    # A hidden token has no text that a stop string could be found in: its name stops by its id.
    named = {id for stop in stops if (id := tokenizer.token_id(stop)) in hidden and id is not None}
    return Asking(
        engine=model.engine,
        tokenizer=tokenizer,
        sampling=sampling,
        stop_ids=model.stop_ids | named,
        banned_ids=model.processor.mark_ids,
        stops=stops,
        limits=None
        if form is None and not banned
        else limits(form, banned, model.spelling(skip), lambda form: model.shape(form, skip)),
        hidden=hidden,
        start=start,
        continues=continues,
        began=began,
    )
