"""A tiny random model of each kind, prompts for it, and engines that run it."""

import itertools

import numpy as np
import torch
from torch import nn

from idefics.config import EngineConfig, KVCacheLayout, Sampling, TextConfig
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.nn.attention import LayerCrossKV
from idefics.nn.attention_backends import sdpa_attention
from idefics.nn.decoder import DecoderLayer
from idefics.nn.norm import RMSNorm
from idefics.nn.rope import rotary_cos_sin
from idefics.prompt import PreprocessedImage, Prompt

VOCAB_SIZE, HIDDEN_SIZE, TOKENS_PER_FRAME, IMAGE_TOKEN_ID = (
    47,
    32,
    3,
    46,
)  # image tokens of a frame, and their id

TEXT_CONFIG = TextConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=HIDDEN_SIZE,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    norm_epsilon=1e-6,
    max_positions=160,
)


class FakeVLM(nn.Module):
    """Inline images, or cross-attention before every second layer. Counts the pictures that it encodes."""

    def __init__(self, uses_cross_attention):
        super().__init__()
        self.uses_cross_attention, self.attention_backend = uses_cross_attention, sdpa_attention
        self.layout = KVCacheLayout(
            num_layers=TEXT_CONFIG.num_layers,
            num_kv_heads=TEXT_CONFIG.num_kv_heads,
            head_size=TEXT_CONFIG.head_size,
            num_cross_attention_layers=TEXT_CONFIG.num_layers // 2 if uses_cross_attention else 0,
            max_positions=TEXT_CONFIG.max_positions,
            vocab_size=VOCAB_SIZE,
        )
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.layers = nn.ModuleList(DecoderLayer(TEXT_CONFIG) for _ in range(TEXT_CONFIG.num_layers))
        self.norm, self.head = RMSNorm(HIDDEN_SIZE, 1e-6), nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False)
        self.vision_projection = nn.Linear(3, HIDDEN_SIZE)
        self.queries = nn.ModuleList(
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(self.layout.num_cross_attention_layers)
        )
        self.keys_values = nn.ModuleList(
            nn.Linear(HIDDEN_SIZE, 2 * HIDDEN_SIZE) for _ in range(self.layout.num_cross_attention_layers)
        )
        for weight in self.parameters():
            if weight.dim() == 2:  # large, so that every token and every picture changes the logits
                nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
        nn.init.normal_(self.embedding.weight)
        self.eval()
        self.frames_per_encode, self.images_per_cross_kv = (
            [],
            [],
        )  # frames in each call of `encode`; pictures in each of `compute_cross_kv`

    @property
    def dtype(self):
        return self.norm.weight.dtype

    def decoder_parts(self):
        return None

    def encode(self, frames):
        assert frames.dtype == self.vision_projection.weight.dtype
        self.frames_per_encode.append(len(frames))
        return self.vision_projection(
            nn.functional.adaptive_avg_pool2d(frames, (1, TOKENS_PER_FRAME)).squeeze(2).transpose(1, 2)
        )

    def compute_cross_kv(self, features):
        if not self.uses_cross_attention:
            return None
        self.images_per_cross_kv.append(len(features))
        pairs = (layer(features).chunk(2, dim=-1) for layer in self.keys_values)
        return [LayerCrossKV(k.unflatten(-1, (4, 8)), v.unflatten(-1, (4, 8))) for k, v in pairs]

    def embed(self, ids):
        return self.embedding(ids)

    def forward(self, x, positions, attn):
        rotary = rotary_cos_sin(positions, TEXT_CONFIG.rope, TEXT_CONFIG.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            if self.uses_cross_attention and index % 2 == 0:
                cross = index // 2
                x = x + attn.cross_attention(cross, self.queries[cross](x).unflatten(-1, (4, 8))).flatten(1)
            x = layer(index, x, rotary, attn)
        return self.norm(x)

    def logits(self, h):
        return self.head(h)


def make_fake_model(kind):
    """The model of a kind, "inline" or "cross_attention": always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FakeVLM(uses_cross_attention=kind == "cross_attention")


def make_tiles(name, frames=1, size=6):
    """A picture of random frames, the same for the same name."""
    rng = np.random.default_rng(sum(map(ord, name)))
    pixels = tuple(rng.normal(size=(3, size, size)).astype(np.float32) for _ in range(frames))
    return PreprocessedImage(pixels, 0, 0, content_hash=f"{name}-{frames}-{size}")


def make_prompt(kind, *items, tokens_per_frame=TOKENS_PER_FRAME):
    """A prompt of ids and pictures in any order; None ends a document, whose pictures later tokens do not attend to."""
    ids, image_index, pictures, image_token_positions, current_image = [], [], [], [], -1
    for item in items:
        if isinstance(item, PreprocessedImage):
            current_image = len(pictures)
            new_ids = [IMAGE_TOKEN_ID] * (
                1 if kind == "cross_attention" else tokens_per_frame * len(item.frames)
            )
            pictures.append(item)
            image_token_positions.append(tuple(range(len(ids), len(ids) + len(new_ids))))
        elif item is None:
            current_image, new_ids = -1, [2]
        else:
            new_ids = [item]
        ids += new_ids
        image_index += [current_image] * len(new_ids)
    return Prompt(tuple(ids), tuple(pictures), tuple(image_token_positions), tuple(image_index))


def make_mixed_prompts(kind):
    """Prompts of unequal length with 0 to 5 pictures before, between and after the text, some shared."""
    cat, dog, bird = make_tiles("cat"), make_tiles("dog"), make_tiles("bird")
    multi_frame_tiles = (
        ()
        if kind == "cross_attention"
        else (make_tiles("wide", frames=3), make_tiles("odd", frames=2, size=9))
    )
    return [
        make_prompt(kind, 5),
        make_prompt(kind, 5, 6, 7, 8, 9, 10, 11),
        make_prompt(kind, cat, 12, 13),
        make_prompt(kind, 14, 15, cat),
        make_prompt(kind, 3, dog, 4, 5, bird, 6, 7, 8),
        make_prompt(kind, cat, dog, bird, 20, 21),
        make_prompt(kind, 9, cat, 8, None, 7, 6),
        make_prompt(kind, 9, cat, 8, None, 7, bird, 6),
        make_prompt(
            kind, *itertools.chain(*((p, 30 + i) for i, p in enumerate((cat, dog, bird, cat, dog)))), 4
        ),
        make_prompt(kind, 2, *multi_frame_tiles, 9, 10),
    ]


def make_engine(kind, **config):
    """An engine for a model of a kind, or for a model."""
    return Engine(make_fake_model(kind) if isinstance(kind, str) else kind, EngineConfig(**config))


def make_request(prompt, *, stop_ids=(), banned_ids=(), on_token=None, **sampling):
    return Request(prompt, Sampling(**sampling), frozenset(stop_ids), frozenset(banned_ids), on_token)


def run_requests(engine, requests):
    """Submits requests together and waits for all: their handles. The engine must have leaked nothing."""
    handles = [engine.submit(one) for one in requests]
    for handle in handles:
        handle.result()
    wait_until_idle(engine)
    return handles


def wait_until_idle(engine):
    """Waits for the end of the last step; then no page is referenced."""
    with engine.condition:
        assert engine.condition.wait_for(lambda: not engine.is_busy, timeout=10)
        check_page_pool(engine.scheduler.page_pool)
        assert not any(engine.scheduler.page_pool.ref_counts)


def check_page_pool(pool):
    """Every page is exactly one of in use, free and evictable, and the indices of the prefix cache agree."""
    referenced = {page for page, ref_count in enumerate(pool.ref_counts) if ref_count}
    free = [*pool._free_pages, *range(pool.first_unused_page, pool.num_pages)]
    evictable, contents = set(pool._evictable_pages), pool._content_by_page
    assert min(pool.ref_counts) >= 0, "released more often than referenced"
    assert len(referenced) + len(free) + len(evictable) == pool.num_pages - 1
    assert referenced | set(free) | evictable == set(range(1, pool.num_pages))
    assert evictable <= set(contents) <= referenced | evictable
    assert {page: key for key, page in pool._page_by_key.items()} == {
        page: content.key for page, content in contents.items()
    }
    assert {
        (page, parent_key) for parent_key, pages in pool._pages_by_parent_key.items() for page in pages
    } == {(page, content.parent_key) for page, content in contents.items()}
