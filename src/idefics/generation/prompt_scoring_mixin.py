"""`PromptScoringMixin`: the methods of `Idefics` that make prompts, count their tokens and score continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack, overload

from torch import Tensor

from idefics.errors import IdeficsError
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import make_prompt, require_prompt, score_continuations
from idefics.messages import Detail, ImageDetail, Picture
from idefics.options import OnError, ScoringKeywords
from idefics.prompt import Prompt
from idefics.validation import reject_unknown_arguments

if TYPE_CHECKING:
    from idefics.generation.prompts import Conversation, PromptItems
    from idefics.messages import PictureSource


class PromptScoringMixin:
    """Makes prompts, and computes logits and log-probabilities for them."""

    loaded_model: LoadedModel

    @reject_unknown_arguments
    def prompt(
        self,
        items: PromptItems | Conversation,
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Prompt:
        """Makes a prompt for `submit` or `logits`: opens, resizes and tiles the pictures, and tokenizes the text.

        Args:
            items: a list of text and pictures (see `generate`), or of messages (see `chat`).
            answer_start: text that the answer begins with; conversations only.
            continue_final_message: continue the last message, as in `chat`; conversations only.
            detail: into how many tiles pictures are split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames per picture; None: as many as the checkpoint makes.

        Returns:
            The token ids and the preprocessed pictures.

        Raises:
            BadRequest: a picture, the text or a setting is wrong.
        """
        return make_prompt(
            self.loaded_model.processor.with_image_detail(ImageDetail(detail, max_tiles)),
            items,
            answer_start=answer_start,
            continue_final_message=continue_final_message,
        )

    @reject_unknown_arguments
    def cost(
        self, picture: Picture | PictureSource, *, detail: Detail = "high", max_tiles: int | None = None
    ) -> int:
        """Counts the prompt tokens of one picture; only its size is read.

        Args:
            picture: in any form that `Picture` takes.
            detail: into how many tiles the picture is split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames; None: as many as the checkpoint makes.

        Raises:
            BadPicture: the picture cannot be opened.
        """
        processor = self.loaded_model.processor.with_image_detail(ImageDetail(detail, max_tiles))
        return processor.count_image_tokens(Picture.of(picture))

    @reject_unknown_arguments
    def logits(self, prompt: Prompt) -> Tensor:
        """Computes the next-token logits after each token of a prompt, in one pass without the KV cache.

        Args:
            prompt: a prompt of N tokens, made by `prompt`.

        Returns:
            (N, V) float32, V being the size of the vocabulary.

        Raises:
            BadPrompt: the argument is no `Prompt`, or is too long.
        """
        return self.loaded_model.engine.logits(require_prompt(prompt))

    @reject_unknown_arguments
    def embed(
        self, picture: Picture | PictureSource, *, detail: Detail = "low", max_tiles: int | None = None
    ) -> Tensor:
        """Computes one vector for a picture: the mean of its features, as the language model reads them.

        Pictures with a high cosine similarity look alike to the model. The vectors of different checkpoints cannot be
        compared.

        Args:
            picture: in any form that `Picture` takes.
            detail: into how many tiles the picture is split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames; None: as many as the checkpoint makes.

        Returns:
            (D,) float32 on the CPU, D being the width of the checkpoint's features.

        Raises:
            BadPicture: the picture cannot be opened.
        """
        prompt = self.prompt([Picture.of(picture)], detail=detail, max_tiles=max_tiles)
        return self.loaded_model.engine.embed(prompt.pictures[0])

    @overload
    def score(
        self,
        items: PromptItems | Conversation,
        continuations: Sequence[str],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[ScoringKeywords],
    ) -> tuple[Prompt, list[list[float]]]:
        """`score` that raises errors: the prompt, and the scores of each continuation."""

    @overload
    def score(
        self,
        items: PromptItems | Conversation,
        continuations: Sequence[str],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        on_error: Literal["return"],
        **options: Unpack[ScoringKeywords],
    ) -> tuple[Prompt, list[list[float] | IdeficsError]]:
        """`score` with `on_error="return"`: the prompt, and scores or an error for each continuation."""

    @reject_unknown_arguments
    def score(
        self,
        items: PromptItems | Conversation,
        continuations: Sequence[str],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        on_error: OnError = "raise",
        detail: Detail = "high",
        max_tiles: int | None = None,
        timeout: float | None = None,
    ) -> tuple[Prompt, list[list[float]]] | tuple[Prompt, list[list[float] | IdeficsError]]:
        """Computes the log-probabilities of texts as continuations of one prompt, which is read once.

        After a conversation a continuation is the answer. After a raw prompt, or a final message that is continued, it
        follows the text directly: it begins with a space if there should be one.

        Args:
            items: a list of text and pictures (see `generate`), or of messages (see `chat`).
            continuations: the texts to score.
            answer_start: text that each answer begins with; conversations only.
            continue_final_message: continue the last message, as in `chat`; conversations only.
            on_error: "raise" the first error about a continuation, with its number; or "return" each error in the place
                of its scores, and score the others. An error about the prompt is raised in any case.
            detail: into how many tiles pictures are split: "high", "auto" or "low"; see `ImageDetail`.
            max_tiles: at most this many frames per picture; None: as many as the checkpoint makes.
            timeout: seconds after which the call raises RequestTimeout; None: never.

        Returns:
            The prompt that all continuations share, and for each continuation the natural logarithm of the probability
            of each of its tokens.

        Raises:
            BadRequest: a picture, a text or a setting is wrong.
            RequestTimeout: `timeout` is over.
        """
        return score_continuations(
            self.loaded_model,
            items,
            continuations,
            image_detail=ImageDetail(detail, max_tiles),
            on_error=on_error,
            timeout=timeout,
            answer_start=answer_start,
            continue_final_message=continue_final_message,
        )
