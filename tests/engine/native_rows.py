"""Random sequences, read step by step in random company and pages; and what a model makes of them in one pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from idefics.nn.attention import DenseAttn
from models.tiny import IDEFICS3, changed

PAGE = 16
# Decoders whose widths no vector divides, and whose many heads share one key head.
SHAPES = {
    "odd sizes": changed(
        IDEFICS3,
        text_config={
            "hidden_size": 50,
            "intermediate_size": 33,
            "head_dim": 10,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "vocab_size": 67,
        },
        image_token_id=66,
    ),
    "many heads": changed(
        IDEFICS3,
        text_config={"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 20, "hidden_size": 140},
    ),
}


@dataclass
class Rows:
    """As `engine.decode` gives them."""

    ids: Tensor
    positions: Tensor
    tables: Tensor
    memories: list


@dataclass
class Pages:
    """A cache of NaN: nothing may be read that was not written."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, layout, count):
        shape = (count, layout.kv_heads, PAGE, layout.head_size)
        make = [[torch.full(shape, torch.nan) for _ in range(layout.layers)] for _ in range(2)]
        return cls(*make)


@dataclass
class Sequence:
    """Ids, what their tokens see (the same for all), and the logits of those read so far."""

    ids: Tensor
    memory: tuple
    pages: list[int]
    logits: list = field(default_factory=list)


def sequences(model, lengths, pictures=3):
    """Random ones; in a model that reads pictures beside the text, one in two sees a picture."""
    rng = torch.Generator().manual_seed(sum(lengths) + len(lengths))
    numbers = iter(
        (torch.randperm(sum(-(-length // PAGE) for length in lengths), generator=rng) + 1).tolist()
    )
    memories = [()]
    if model.layout.cross_layers:
        config = model.config
        features = torch.randn(pictures, config.resampler.latents, config.vision.width, generator=rng)
        with torch.inference_mode():
            memories += [model.memory(feature[None]) for feature in features]
    return [
        Sequence(
            torch.randint(0, model.layout.vocabulary, (length,), generator=rng),
            memories[index % len(memories)],
            [next(numbers) for _ in range(-(-length // PAGE))],
        )
        for index, length in enumerate(lengths)
    ]


def rows_of(some):
    """The next token of each of these sequences."""
    longest = max(len(sequence.pages) for sequence in some)
    positions = torch.tensor([len(sequence.logits) for sequence in some])
    return Rows(
        torch.stack([sequence.ids[place] for sequence, place in zip(some, positions, strict=True)]),
        positions,
        torch.tensor([row.pages + [0] * (longest - len(row.pages)) for row in some], dtype=torch.int32),
        [sequence.memory for sequence in some],
    )


def read(step, rows, most=17):
    """Reads all sequences to their ends, in each step some of them."""
    rng = torch.Generator().manual_seed(len(rows))
    while going := [row for row in rows if len(row.logits) < len(row.ids)]:
        count = int(torch.randint(1, min(most, len(going)) + 1, (), generator=rng))
        some = [going[index] for index in torch.randperm(len(going), generator=rng)[:count]]
        for row, logits in zip(some, step(rows_of(some)), strict=True):
            row.logits.append(logits)


@torch.inference_mode()
def expected(model, row):
    """(N, V): the model's own pass over a sequence, without a cache."""
    count = len(row.ids)
    attn = DenseAttn(1, row.memory, torch.zeros(count, dtype=torch.long), window=model.layout.window)
    return model.logits(model.forward(model.embed(row.ids), torch.arange(count), attn))
