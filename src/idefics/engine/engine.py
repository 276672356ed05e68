"""The engine: prompts in, ids out. Requests join and leave between steps; a thread of its own takes the steps.

Knows ids and the tensors of pictures; no text and no families.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from idefics.config import EngineConfig, Sampling
from idefics.engine.cache import PagedCache
from idefics.engine.contract import VLM
from idefics.engine.decode import decode_step
from idefics.engine.driver import Driver
from idefics.engine.encode import Pictures, first_weight
from idefics.engine.handle import Handle
from idefics.engine.job import Job
from idefics.engine.memory import cache_dtype, page_count
from idefics.engine.pages import Pages
from idefics.engine.picker import Picker
from idefics.engine.plan import Limits
from idefics.engine.request import Ending, Request
from idefics.engine.runner import Runner
from idefics.engine.scheduler import Scheduler
from idefics.engine.slow import SlowTwin
from idefics.errors import BadPrompt, BadSetting, PromptTooLong
from idefics.prompt import Prompt

ALONE = 8  # times as many tokens of prompts are read in a step where no answer has to wait for it


class Engine:
    """Continues prompts with a model, on the model's device and in its dtype. Any thread may call it.

    Every call raises, before any work, PromptTooLong for a prompt that leaves no room, and BadPrompt for an
    empty one or for ids that the model does not have.

    Args:
        free: bytes that its caches may be made of; None: what is free now on the model's device.

    Attributes:
        work: the lock over all bookkeeping; told when there is something to do, or room in the queue.
    """

    def __init__(self, model: VLM, config: EngineConfig, free: int | None = None) -> None:
        self.model, self.config = model, config
        weight = first_weight(model)
        devices = {parameter.device for parameter in model.parameters()}
        kept = cache_dtype(model)
        pages = page_count(model.layout, kept, weight.device, config, free)
        self.cache = PagedCache(model.layout, pages, kept, weight.device if len(devices) == 1 else None)
        self.pictures = Pictures(model, config.encode_frames, config.picture_bytes)
        limits = Limits(
            rows=config.batch_rows,
            tokens=config.step_tokens,
            alone=ALONE * config.step_tokens,
            frames=config.encode_frames,
            queue=config.waiting,
            ahead=weight.device.type == "cuda" and len(devices) == 1,
        )
        self.scheduler = Scheduler(Pages(pages), limits, self.pictures)
        decode = decode_step(model, self.cache, reference=config.reference)
        self.runner = Runner(model, self.cache, decode, self.pictures, weight.device, ahead=limits.ahead)
        self.picker = Picker(model, self.runner)
        self.work = threading.Condition(threading.RLock())
        self._jobs: dict[Handle, Job] = {}
        self._computing = threading.Lock()
        self._driver = Driver(self)

    def submit(self, request: Request, *, wait: bool = False) -> Handle:
        """Asks for an answer, or for the scores of endings.

        Args:
            wait: for room in the queue, if there is none.

        Raises:
            EngineBusy: the queue is full.
            BadSetting: the request could never fit into the cache.
        """
        endings, biases = request.endings, request.sampling.logit_bias
        longest = 1 if endings is None else max(map(len, endings), default=0)
        self._check(request.prompt, room=longest, after=chain.from_iterable(endings or ()))
        if biases and (highest := max(biases)) >= self.model.layout.vocabulary:
            raise BadSetting(
                f"logit_bias names token {highest}; "
                f"this model's tokens are 0 to {self.model.layout.vocabulary - 1}"
            )
        handle = Handle(request, self._cancel)
        room = 0 if endings is not None else self.room(request.prompt, request.sampling)
        job = Job(request, handle, room, beside=self.model.layout.cross_layers > 0)
        with self.work:
            while wait and self.scheduler.is_full:
                self.work.wait()
            self.scheduler.submit(job)
            self._jobs[handle] = job
            self._driver.wake()
        return handle

    def score(self, prompt: Prompt, endings: Iterable[Ending]) -> list[list[float]]:
        """The natural-log probability of each token of each ending, if it followed the prompt.

        The prompt and its pictures are read once, the endings together after it. Probabilities are the
        model's own: nothing is banned.
        """
        request = Request(prompt, endings=tuple(endings))
        return self.submit(request, wait=True).result().scores

    @torch.no_grad()  # not inference_mode: the caller may go on computing with an ordinary tensor
    def logits(self, prompt: Prompt) -> Tensor:
        """(N, V) float32: after each token of a prompt, the logits of the next. One pass, nothing cached."""
        self._check(prompt, room=0)
        with self._computing:
            return self.model.logits(SlowTwin(self.model, prompt).hidden()).float()

    def forget(self) -> None:
        """Drops what is kept for later requests: beginnings of prompts, and pictures."""
        with self._computing, self.work:
            self.scheduler.pages.forget()
            self.pictures.make_room(self.scheduler.in_use(), most=0)

    def close(self) -> None:
        """Cancels everything and ends the thread. The engine may be used again."""
        with self.work:
            for handle in list(self._jobs):
                self._cancel(handle)
        self._driver.close()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return self.scheduler.is_busy

    @torch.inference_mode()
    def step(self) -> None:
        """One step for all who are there."""
        try:
            with self.work:
                plan = self.scheduler.plan()  # who is read, and how far
            with self._computing:
                read = self.runner.run(plan)
                picks = self.picker.pick(plan, read)  # what follows for each
            with self.work:
                self.scheduler.commit(plan, picks)  # ids, pages, who has ended
                if self.pictures.size > self.pictures.most:
                    self.pictures.make_room(self.scheduler.in_use())
        except Exception as error:  # not of one request: nobody shall wait for ever
            with self.work:
                self.scheduler.fail(error)
        with self.work:
            for handle in [handle for handle in self._jobs if handle.done]:
                del self._jobs[handle]
            self.work.notify_all()

    def _cancel(self, handle: Handle) -> None:
        with self.work:
            if handle in self._jobs:
                self.scheduler.cancel(self._jobs.pop(handle))
                self.work.notify_all()

    def room(self, prompt: Prompt, sampling: Sampling) -> int:
        """How many tokens an answer may have: at least one."""
        self._check(prompt, room=1)
        return min(sampling.max_new_tokens, self.model.layout.max_positions - len(prompt))

    def _check(self, prompt: Prompt, room: int, after: Iterable[int] = ()) -> None:
        """That the model has the ids of a prompt and `after` it, and `room` for so many more."""
        layout = self.model.layout
        if not prompt.ids:
            raise BadPrompt("the prompt is empty: give text, pictures or both")
        if len(prompt) + room > layout.max_positions:
            raise PromptTooLong(len(prompt), layout.max_positions - room, len(prompt.pictures))
        highest = max(chain(prompt.ids, after))
        if highest >= layout.vocabulary:  # on a GPU it would end the process's use of the device
            raise BadPrompt(
                f"the prompt has token {highest}, but this model's tokens are 0 to {layout.vocabulary - 1}: "
                "leave it out, or use the tokenizer of the same checkpoint"
            )
