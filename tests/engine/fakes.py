"""A tiny random model of each kind, and prompts for it: all that the engine's tests know of models."""

import itertools

import numpy as np
import torch
from torch import nn

from idefics.config import CacheLayout, EngineConfig, Sampling, TextConfig
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.nn.attention import LayerMemory
from idefics.nn.decoder import DecoderLayer
from idefics.nn.kernels import fused
from idefics.nn.norm import RMSNorm
from idefics.nn.rope import rotary_tables
from idefics.prompt import Prompt, Tiles

VOCABULARY, WIDTH, PLACES, IMAGE = 47, 32, 3, 46  # places a frame takes in the text, and their id

TEXT = TextConfig(
    vocabulary=VOCABULARY,
    width=WIDTH,
    inner=48,
    layers=4,
    heads=4,
    kv_heads=2,
    head_size=8,
    norm_epsilon=1e-6,
    max_positions=160,
)


class FakeVLM(nn.Module):
    """Pictures in the text, or beside it with a cross block before every second layer. Counts its pictures."""

    def __init__(self, beside):
        super().__init__()
        self.beside, self.kernel = beside, fused
        self.layout = CacheLayout(
            layers=TEXT.layers,
            kv_heads=TEXT.kv_heads,
            head_size=TEXT.head_size,
            cross_layers=TEXT.layers // 2 if beside else 0,
            max_positions=TEXT.max_positions,
            vocabulary=VOCABULARY,
        )
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(DecoderLayer(TEXT) for _ in range(TEXT.layers))
        self.norm, self.head = RMSNorm(WIDTH, 1e-6), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.eye = nn.Linear(3, WIDTH)
        self.queries = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(self.layout.cross_layers))
        self.keys_values = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(self.layout.cross_layers))
        for weight in self.parameters():
            if weight.dim() == 2:  # large, so that every token and every picture is felt in the logits
                nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
        nn.init.normal_(self.embedding.weight)
        self.eval()
        self.encoded, self.remembered = (
            [],
            [],
        )  # frames in each call of `encode`; pictures in each of `memory`

    @property
    def dtype(self):
        return self.norm.weight.dtype

    def stack(self):
        return None

    def encode(self, frames):
        assert frames.dtype == self.eye.weight.dtype
        self.encoded.append(len(frames))
        return self.eye(nn.functional.adaptive_avg_pool2d(frames, (1, PLACES)).squeeze(2).transpose(1, 2))

    def memory(self, features):
        if not self.beside:
            return None
        self.remembered.append(len(features))
        pairs = (layer(features).chunk(2, dim=-1) for layer in self.keys_values)
        return [LayerMemory(k.unflatten(-1, (4, 8)), v.unflatten(-1, (4, 8))) for k, v in pairs]

    def embed(self, ids):
        return self.embedding(ids)

    def forward(self, x, positions, attn):
        rotary = rotary_tables(positions, TEXT.rope, TEXT.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            if self.beside and index % 2 == 0:
                cross = index // 2
                x = x + attn.cross(cross, self.queries[cross](x).unflatten(-1, (4, 8))).flatten(1)
            x = layer(index, x, rotary, attn)
        return self.norm(x)

    def logits(self, h):
        return self.head(h)


def fake(kind):
    """The model of a kind, "text" or "beside": always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FakeVLM(beside=kind == "beside")


def picture(name, frames=1, side=6):
    """A picture of random frames, the same for the same name."""
    noise = np.random.default_rng(sum(map(ord, name)))
    drawn = tuple(noise.normal(size=(3, side, side)).astype(np.float32) for _ in range(frames))
    return Tiles(drawn, 0, 0, key=f"{name}-{frames}-{side}")


def prompt(kind, *items, places=PLACES):
    """A prompt of ids and pictures in any order; None ends a document, after which nothing is seen."""
    ids, sees, pictures, where, seen = [], [], [], [], -1
    for item in items:
        if isinstance(item, Tiles):
            seen = len(pictures)
            new = [IMAGE] * (1 if kind == "beside" else places * len(item.frames))
            pictures.append(item)
            where.append(tuple(range(len(ids), len(ids) + len(new))))
        elif item is None:
            seen, new = -1, [2]
        else:
            new = [item]
        ids += new
        sees += [seen] * len(new)
    return Prompt(tuple(ids), tuple(pictures), tuple(where), tuple(sees))


def mixed(kind):
    """Prompts of unequal length with 0 to 5 pictures before, between and after the text, some shared."""
    cat, dog, bird = picture("cat"), picture("dog"), picture("bird")
    many = () if kind == "beside" else (picture("wide", frames=3), picture("odd", frames=2, side=9))
    return [
        prompt(kind, 5),
        prompt(kind, 5, 6, 7, 8, 9, 10, 11),
        prompt(kind, cat, 12, 13),
        prompt(kind, 14, 15, cat),
        prompt(kind, 3, dog, 4, 5, bird, 6, 7, 8),
        prompt(kind, cat, dog, bird, 20, 21),
        prompt(kind, 9, cat, 8, None, 7, 6),
        prompt(kind, 9, cat, 8, None, 7, bird, 6),
        prompt(kind, *itertools.chain(*((p, 30 + i) for i, p in enumerate((cat, dog, bird, cat, dog)))), 4),
        prompt(kind, 2, *many, 9, 10),
    ]


def engine_for(kind, **config):
    """An engine for a model of a kind, or for a model."""
    return Engine(fake(kind) if isinstance(kind, str) else kind, EngineConfig(**config))


def request(asked, *, stop_ids=(), banned_ids=(), watch=None, **sampling):
    return Request(asked, Sampling(**sampling), frozenset(stop_ids), frozenset(banned_ids), watch)


def answered(engine, requests):
    """The handles of requests that are asked together, when all are done; the engine must have leaked nothing."""
    handles = [engine.submit(one) for one in requests]
    for handle in handles:
        handle.result()
    settled(engine)
    return handles


def settled(engine):
    """Waits for the end of the last step; then nobody owns a page."""
    with engine.work:
        assert engine.work.wait_for(lambda: not engine.is_busy, timeout=10)
        engine.scheduler.pages.check()
        assert not any(engine.scheduler.pages.owners)
