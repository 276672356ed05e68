"""Log-probabilities of tokens as the routes return them, and those of the tokens of a prompt."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

from idefics.generation.token_rows import MIN_LOGPROB
from idefics.messages import Alternative, Answer, Delta
from idefics.processing.tokenizer import Tokenizer
from idefics.prompt import Prompt, ScoringPrompt
from idefics.server.request_context import RequestContext
from idefics.server.response_fields import ResponseFields

CHUNK_TOKENS = 512  # tokens scored at once; the cost of a chunk grows with the square of its length


class TokenLogprob(ResponseFields):
    """A token: its text, its natural-log probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobWithTop(TokenLogprob):
    """A generated token, and the most likely tokens at its position."""

    top_logprobs: list[TokenLogprob]


class CompletionLogprobs(ResponseFields):
    """Lists with one entry per token: text, log-probability, most likely tokens, offset in the whole text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def token_logprobs(tokenizer: Tokenizer, answer: Answer | Delta) -> list[TokenLogprobWithTop] | None:
    """The log-probabilities of an answer's tokens as chat completions and responses have them; None: not requested."""
    if answer.logprobs is None:
        return None
    return [
        {
            **_token_logprob(tokenizer, id, logprob),
            "top_logprobs": [
                _token_logprob(tokenizer, alternative.token, alternative.logprob) for alternative in top
            ],
        }
        for id, logprob, top in _iterate_logprobs(answer)
    ]


class TokenTextDecoder:
    """Decodes an answer token by token, such that the texts of all tokens joined are the answer's text.

    A character that several tokens spell belongs to the last of them. A leading space that the answer's text does not
    have is left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._utf8_decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_started = False

    def decode_tokens(self, answer: Answer | Delta) -> list[str]:
        """The texts of a whole answer's tokens, or of those that a delta adds."""
        token_bytes = (self.tokenizer.decode_bytes([id], hidden_ids=()) for id in answer.tokens)
        texts = [self._utf8_decoder.decode(data) for data in token_bytes]
        if texts and isinstance(answer, Answer):
            texts[-1] += self._utf8_decoder.decode(b"", final=True)
        if texts and not self._has_started and not answer.text.startswith(" "):
            texts[0] = texts[0].removeprefix(" ")
        self._has_started = True
        return texts


def completion_logprobs(
    decoder: TokenTextDecoder, answer: Answer | Delta, offset: int
) -> CompletionLogprobs | None:
    """The log-probabilities of an answer's tokens, for completions; None if not requested.

    Args:
        decoder: has decoded the tokens before these.
        answer: a whole answer, or the next part of one. NaN stands for a first token, which has no log-probability.
        offset: characters of the whole text before this part.
    """
    if answer.logprobs is None:
        return None
    tokens = decoder.decode_tokens(answer)
    return {
        "tokens": tokens,
        "token_logprobs": [
            None if math.isnan(logprob) else max(logprob, MIN_LOGPROB) for logprob in answer.logprobs
        ],
        "top_logprobs": [
            None
            if math.isnan(logprob)
            else {
                _token_text(decoder.tokenizer, alternative.token): max(alternative.logprob, MIN_LOGPROB)
                for alternative in top
            }
            for _, logprob, top in _iterate_logprobs(answer)
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }


def concatenate_logprobs(
    first: CompletionLogprobs | None, second: CompletionLogprobs | None
) -> CompletionLogprobs | None:
    """The log-probabilities of two consecutive texts as those of one; if one is None, the other's."""
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}  # type: ignore[literal-required,return-value]


async def compute_prompt_logprobs(
    context: RequestContext, make_prompt: Callable[[], Prompt], text: str, num_top_logprobs: int
) -> Delta:
    """Scores the tokens of a prompt without pictures.

    Each chunk of tokens is scored as a continuation of the tokens before it, which are in the prefix cache by then.

    Args:
        make_prompt: makes the prompt, in a thread.
        text: the text of the prompt. Tokens that the tokenizer adds before it are not scored.
        num_top_logprobs: number of most likely tokens to report at each position.

    Returns:
        The text, its tokens and their natural-log probabilities; NaN for a first token that no token comes before.

    Raises:
        APIError, IdeficsError: as in `RequestContext.score_continuations`.
    """
    prompt = await context.run_in_worker(make_prompt)
    num_opening_tokens = context.service.vlm.processor.num_raw_prompt_prefix_tokens
    logprobs = [math.nan] * (num_opening_tokens == 0)
    top_logprobs: list[tuple[Alternative, ...]] = [()] * (num_opening_tokens == 0)
    for start in range(max(num_opening_tokens, 1), len(prompt), CHUNK_TOKENS):
        chunk = prompt.ids[start : start + CHUNK_TOKENS]
        handle = await context.score_continuations(
            partial(ScoringPrompt, prompt.text_prefix(start), (chunk,)),
            num_top_logprobs=num_top_logprobs,
        )
        logprobs += handle.continuation_logprobs[0]
        top_logprobs += handle.continuation_top_logprobs[0]
    return Delta(
        text,
        prompt.ids[num_opening_tokens:],
        tuple(logprobs),
        tuple(top_logprobs) if num_top_logprobs else None,
    )


def _iterate_logprobs(answer: Answer | Delta) -> Iterator[tuple[int, float, Sequence[Alternative]]]:
    """Yields (id, log-probability, most likely tokens) of each token; the answer must have log-probabilities."""
    top_logprobs = answer.top_logprobs or [()] * len(answer.tokens)
    return zip(answer.tokens, answer.logprobs or (), top_logprobs, strict=True)


def _token_logprob(tokenizer: Tokenizer, id: int, logprob: float) -> TokenLogprob:
    """A token with its text, its log-probability (at least `MIN_LOGPROB`) and its bytes."""
    return {
        "token": _token_text(tokenizer, id),
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(tokenizer.decode_bytes([id], hidden_ids=())),
    }


def _token_text(tokenizer: Tokenizer, id: int) -> str:
    """The text of one token; bytes that are not whole characters are replaced by U+FFFD."""
    return tokenizer.decode_bytes([id], hidden_ids=()).decode(errors="replace")
