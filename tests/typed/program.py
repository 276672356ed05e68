"""A program that uses the whole public API, for type checkers in their strict modes; a test runs it too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, assert_type

import idefics
from idefics import (
    AdapterMismatch,
    Alternative,
    Answer,
    BadCall,
    BadPicture,
    BadPrompt,
    BadRequest,
    BadSetting,
    BadVideo,
    BrokenCheckpoint,
    Delta,
    EngineBusy,
    EngineConfig,
    ExplainedWord,
    Explanation,
    Idefics,
    IdeficsError,
    ImageDetail,
    MapResult,
    MapResults,
    Message,
    MissingExtra,
    ModelClosed,
    ModelError,
    ModelNotFound,
    Options,
    OutOfMemory,
    OutputError,
    PartialPictureWarning,
    Picture,
    PromptTooLong,
    QuantizationConfig,
    RankedLabel,
    Ranking,
    RequestTimeout,
    Sampling,
    Shot,
    Stream,
    TextTooLong,
    Timings,
    UnknownArgument,
    UnsupportedModel,
    Usage,
    Video,
    WeightsMismatch,
    assistant,
    load,
    read_shots,
    user,
)
from idefics.train import (
    DryRun,
    Forecast,
    SampleRecord,
    StepRecord,
    TrainingListener,
    TrainResult,
    TrainSettings,
    ValidationRecord,
    run,
)

ERROR_CLASSES: Sequence[type[IdeficsError]] = (
    BadCall,
    AdapterMismatch,
    BadPicture,
    BadPrompt,
    BadRequest,
    BadSetting,
    BadVideo,
    BrokenCheckpoint,
    EngineBusy,
    MissingExtra,
    ModelClosed,
    ModelError,
    ModelNotFound,
    OutOfMemory,
    OutputError,
    PromptTooLong,
    RequestTimeout,
    TextTooLong,
    UnknownArgument,
    UnsupportedModel,
    WeightsMismatch,
)


WARNED: type[UserWarning] = PartialPictureWarning


def short_caption(vlm: Idefics, picture: Path, **options: Unpack[Options]) -> str:
    """A call of the caller's own, with the options of ours."""
    return vlm.caption(picture, **options).text


def answers(vlm: Idefics, picture: Path) -> None:
    one = vlm.ask(picture, "What is in this image?", max_new_tokens=4, timeout=60.0)
    assert_type(one, Answer)
    assert_type(one.text, str)
    assert_type(one.tokens, tuple[int, ...])
    assert_type(one.usage, Usage)
    assert_type(one.timings, Timings)
    assert_type(one.notes, tuple[str, ...])
    assert_type(vlm.ask([picture, picture], "What is this?", max_new_tokens=2), list[Answer])
    assert_type(vlm.caption(Picture(picture, detail="low")), Answer)
    assert_type(vlm.caption([Picture(picture)], on_error="return"), list[Answer | IdeficsError])
    assert_type(vlm.complete(picture, "This is", max_new_tokens=2), Answer)
    assert_type(vlm.write([picture], max_new_tokens=2), list[Answer])
    assert_type(vlm.generate(["A picture of", picture], max_new_tokens=2), Answer)
    assert_type(vlm.generate([["A", picture], ["The"]], max_new_tokens=2), list[Answer])
    assert_type(vlm.cost(picture), int)
    assert short_caption(vlm, picture, temperature=0.5, seed=1, stop=["."], max_new_tokens=3) is not None


def logprobs(vlm: Idefics, picture: Path) -> None:
    answer = vlm.caption(picture, logprobs=True, top_logprobs=2, max_new_tokens=2)
    assert answer.logprobs is not None and answer.top_logprobs is not None
    for chosen, places in zip(answer.logprobs, answer.top_logprobs, strict=True):
        assert_type(chosen, float)
        for place in places:
            assert_type(place, Alternative)
            assert_type(place.logprob, float)


def conversations(vlm: Idefics, picture: Path) -> None:
    messages = [user(Picture(picture), "What is this?"), assistant("A"), user("Which color?")]
    assert_type(messages, list[Message])
    assert_type(vlm.chat(messages, max_new_tokens=2), Answer)
    assert_type(vlm.chat([{"role": "user", "content": "Hi"}], max_new_tokens=2), Answer)
    prompt = vlm.prompt(messages)
    likely = vlm.score(messages, ["red", "blue"])
    assert_type(likely[1], list[list[float]])
    with vlm.submit(prompt, max_new_tokens=2) as stream:
        assert_type(stream, Stream)


def rankings(vlm: Idefics, picture: Path) -> None:
    ranking = vlm.classify(picture, ["cat", "dog"])
    assert_type(ranking, Ranking)
    assert_type(ranking.best, str)
    for label, probability, logprob in ranking:
        assert_type(label, str)
        assert_type(probability, float)
        assert_type(logprob, float)
    first = ranking.labels[0]
    assert_type(first, RankedLabel)
    assert_type(first.label, str)
    assert_type(vlm.classify([picture], ["cat", "dog"], calibrated=True), list[Ranking])


def explanations(vlm: Idefics, picture: Path) -> None:
    explanation = vlm.explain(picture, "What is it?", grid=4)
    assert_type(explanation, Explanation)
    assert_type(explanation.words[0], ExplainedWord)
    assert_type(explanation.total.words_share, float)
    assert_type(explanation.to_json(), str)
    for partial in vlm.explain(picture, labels=["cat", "dog"], grid=4, stream=True):
        assert_type(partial, Explanation)


def rows(vlm: Idefics, picture: Path) -> None:
    with vlm.map([picture, {"image": picture, "prompt": "What is this?"}], "ask", prompt="Why?") as results:
        assert_type(results, MapResults)
        for done in results:
            assert_type(done, MapResult)
            assert_type(done.result, Answer | Ranking | IdeficsError)
    for done in vlm.map([picture], "classify", labels=["cat", "dog"], ordered=False, on_error="return"):
        assert_type(done.index, int)


def streams(vlm: Idefics, picture: Path) -> None:
    with vlm.caption(picture, stream=True, max_new_tokens=3) as stream:
        assert_type(stream, Stream)
        for piece in stream:
            assert_type(piece, str)
    assert_type(stream.answer, Answer)

    async def read() -> None:
        async for delta in vlm.submit(vlm.prompt(["The"]), max_new_tokens=3).deltas():
            assert_type(delta, Delta)
            assert_type(delta.tokens, tuple[int, ...])

    asyncio.run(read())


def settings() -> None:
    assert_type(Sampling(max_new_tokens=3).temperature, float)
    assert_type(EngineConfig(batch_rows=4).batch_rows, int)
    assert_type(ImageDetail("auto", 4).max_tiles, int | None)
    assert QuantizationConfig(kind="int8").kind == "int8"
    assert Video([Picture("one.png")], fps=1.0).fps == 1.0


def errors(vlm: Idefics, picture: Path) -> None:
    try:
        assert_type(vlm.read(picture), Answer)
        assert_type(vlm.read([picture], on_error="return"), list[Answer | IdeficsError])
    except BadRequest as error:  # the demo writes no DocTags
        assert_type(error, BadRequest)
    try:
        vlm.caption("nowhere.jpg")
    except BadPicture as error:
        assert_type(error, BadPicture)
    try:
        vlm.generate(["The"], max_new_tokens=900, timeout=1e-6)
    except RequestTimeout as error:
        assert_type(error.seconds, float)


class Losses(TrainingListener):
    """Keeps the losses of a training."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        assert_type(record.loss, float)
        self.losses.append(record.loss)

    def on_validation(self, record: ValidationRecord) -> None:
        assert_type(record.row_accuracy, float)

    def on_sample(self, record: SampleRecord) -> None:
        assert_type(record.answer, str)

    def on_forecast(self, forecast: Forecast) -> None:
        assert_type(forecast.needed, int)

    def on_dry_run(self, record: DryRun) -> None:
        assert_type(record.seconds_left, float)


def training(shots: Path) -> None:
    out, losses = shots.parent / "adapter", Losses()
    result = run(TrainSettings(data=str(shots), model="demo", out=out, steps=1, num_samples=1), [losses])
    assert_type(result, TrainResult)
    assert_type(result.out, Path | None)
    assert len(losses.losses) == result.num_steps == 1


def main(picture: Path, shots: Path) -> None:
    """Runs everything with the demo model, a picture and a file of shots."""
    assert idefics.__version__
    with load("demo", device="cpu", threads=1) as vlm:
        assert_type(vlm, Idefics)
        for part in (answers, logprobs, conversations, rankings, explanations, rows, streams):
            part(vlm, picture)
        given = read_shots(shots)
        assert_type(given, list[Shot])
        assert_type(vlm.with_shots(given), Idefics)
        errors(vlm, picture)
    settings()
    training(shots)
