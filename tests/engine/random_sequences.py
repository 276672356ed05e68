"""Random sequences in random pages, decoded step by step in random batches; and their logits in one uncached pass."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from idefics.nn.attention import DenseAttn
from models.tiny import IDEFICS3, merge_config

PAGE_SIZE = 16
# Decoders whose widths no vector divides, and whose many heads share one key head.
UNUSUAL_CONFIGS = {
    "odd sizes": merge_config(
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
    "many heads": merge_config(
        IDEFICS3,
        text_config={"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 20, "hidden_size": 140},
    ),
}


@dataclass
class FakeDecodeInputs:
    """The fields of `DecodeInputs` that the native step reads."""

    ids: Tensor
    positions: Tensor
    page_tables: Tensor
    cross_kvs: list
    adapters: Tensor | None = None


@dataclass
class UnwrittenPages:
    """A cache of NaN: reading what was not written shows in the result."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @classmethod
    def allocate(cls, layout, num_pages):
        shape = (num_pages, layout.num_kv_heads, PAGE_SIZE, layout.head_size)
        make = [[torch.full(shape, torch.nan) for _ in range(layout.num_layers)] for _ in range(2)]
        return cls(*make)


@dataclass
class RandomSequence:
    """Ids, the picture that all tokens attend to, an adapter, and the logits of the tokens computed so far."""

    ids: Tensor
    cross_kv: tuple
    pages: list[int]
    logits: list = field(default_factory=list)
    adapter: int = -1


def make_sequences(model, lengths, num_images=3):
    """Random sequences; in a cross-attention model one in two attends to a picture."""
    rng = torch.Generator().manual_seed(sum(lengths) + len(lengths))
    page_numbers = iter(
        (torch.randperm(sum(-(-length // PAGE_SIZE) for length in lengths), generator=rng) + 1).tolist()
    )
    cross_kvs = [()]
    if model.layout.num_cross_attention_layers:
        config = model.config
        features = torch.randn(
            num_images, config.resampler.num_latents, config.vision.hidden_size, generator=rng
        )
        with torch.inference_mode():
            cross_kvs += [model.compute_cross_kv(feature[None]) for feature in features]
    return [
        RandomSequence(
            torch.randint(0, model.layout.vocab_size, (length,), generator=rng),
            cross_kvs[index % len(cross_kvs)],
            [next(page_numbers) for _ in range(-(-length // PAGE_SIZE))],
        )
        for index, length in enumerate(lengths)
    ]


def make_decode_inputs(sequences):
    """The inputs of a step over the next token of each of these sequences."""
    max_pages = max(len(sequence.pages) for sequence in sequences)
    positions = torch.tensor([len(sequence.logits) for sequence in sequences])
    adapters = torch.tensor([sequence.adapter for sequence in sequences], dtype=torch.int32)
    return FakeDecodeInputs(
        torch.stack(
            [sequence.ids[position] for sequence, position in zip(sequences, positions, strict=True)]
        ),
        positions,
        torch.tensor(
            [row.pages + [0] * (max_pages - len(row.pages)) for row in sequences], dtype=torch.int32
        ),
        [sequence.cross_kv for sequence in sequences],
        adapters if adapters.max() >= 0 else None,
    )


def run_decode_steps(step, sequences, max_batch_size=17):
    """Decodes all sequences to their ends, in each step a random batch of them."""
    rng = torch.Generator().manual_seed(len(sequences))
    while unfinished := [row for row in sequences if len(row.logits) < len(row.ids)]:
        count = int(torch.randint(1, min(max_batch_size, len(unfinished)) + 1, (), generator=rng))
        batch = [unfinished[index] for index in torch.randperm(len(unfinished), generator=rng)[:count]]
        for row, logits in zip(batch, step(make_decode_inputs(batch)), strict=True):
            row.logits.append(logits)


@torch.inference_mode()
def uncached_logits(model, sequence):
    """(N, V): the model's own pass over a sequence, without a cache."""
    count = len(sequence.ids)
    attn = DenseAttn(
        1, sequence.cross_kv, torch.zeros(count, dtype=torch.long), sliding_window=model.layout.sliding_window
    )
    return model.logits(model.forward(model.embed(sequence.ids), torch.arange(count), attn))
