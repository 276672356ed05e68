"""What schemathesis is told beside our description: what it asks can be answered, and is answered shortly."""

import schemathesis

MAX_TOKENS = 4  # tokens
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Names the model that is there, wherever a name is asked for: any other is a 404 and shows no more."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "demo"
        for name in LENGTH_FIELDS:
            if type(body.get(name)) is int and body[name] > MAX_TOKENS:
                body[name] = MAX_TOKENS
