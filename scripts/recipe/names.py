"""What ties words to what pictures show: features near their names, and names that point to their cells."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from picturebook.things import COLORS, PLACES

from .batches import KIND_NAMES, Batch, Labels
from .checkpoints import IMAGE

SHARPNESS = 10.0  # of a softmax over cosines


def first_token(tokenizer: Tokenizer, word: str) -> int:
    """A word's first token where it follows another word."""
    return int(tokenizer.encode(f"a {word}", add_special_tokens=False).ids[1])


class Names:
    """The feature of a cell shall be near the word for what the cell shows, and about as long.

    Then one way of matching serves for every word: "is there a puppy?" need not be learned apart from "a rabbit". And
    what a block adds to the stream is as much beside a picture as beside a word; a cosine alone lets features grow.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kinds = torch.tensor([first_token(tokenizer, name) for name in KIND_NAMES])
        self.colors = torch.tensor([first_token(tokenizer, name) for name in COLORS])

    def loss(self, features: Tensor, embedding: nn.Embedding, labels: Labels) -> Tensor:
        """(P, 9, D) features -> how far they are from the words' embeddings, by cosine and by length."""
        length = (features.square().mean() / embedding.weight.square().mean()).log().square()
        features = normalize(features, dim=-1) * SHARPNESS
        kinds = features @ normalize(embedding(self.kinds), dim=-1).T
        colors = features @ normalize(embedding(self.colors), dim=-1).T
        of_colors = cross_entropy(colors.flatten(0, 1), labels.colors.flatten(), reduction="sum")
        of_kinds = cross_entropy(kinds.flatten(0, 1), labels.kinds.flatten())
        return length + of_kinds + of_colors / (labels.colors >= 0).sum().clamp(min=1)


class Pointers:
    """Which tokens point to a cell of the latest picture, where pictures stand in the text.

    A name points to the cells that show it: a shape after a colour to those of that colour, a name that fits no cell to
    the mark before the nine. What follows the words of a place points to that place.
    """

    def __init__(self, tokenizer: Tokenizer, names: Names) -> None:
        self.names, self.image = names, tokenizer.token_to_id(IMAGE)
        words = [[first_token(tokenizer, word) for word in place.split()[-2:]] for place in PLACES]
        self.places = torch.tensor(words)  # (9, 2): the last two words of each
        self.sides = self.places[[3, 5], 1]

    def __call__(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For names and for places: the tokens that point, (S,) of all, and to which of their row's places, (S, T)."""
        seeing = (batch.sees >= 0) & (batch.ids != self.image)
        kinds = (batch.ids[:, None] == self.names.kinds[1:]) & seeing[:, None]  # (N, kinds - 1)
        names, kind = kinds.nonzero(as_tuple=True)
        labels, before = batch.labels, batch.ids[names - 1, None] == self.names.colors  # (S, colours)
        fits = labels.kinds[batch.sees[names]] == kind[:, None] + 1  # (S, 9)
        fits &= (labels.colors[batch.sees[names]] == before.int().argmax(1)[:, None]) | ~before.any(
            1, keepdim=True
        )

        said = torch.stack((batch.ids.roll(2), batch.ids.roll(1)), dim=1)  # (N, 2)
        ends = (said[:, None] == self.places).all(-1) & seeing[:, None]  # (N, 9)
        ends[:, [1, 7]] &= ~torch.isin(batch.ids, self.sides)[:, None]  # "at the top" may go on: "left"
        after, cell = ends.nonzero(as_tuple=True)
        there = cell[:, None] == torch.arange(9)
        return [(names, self._in_row(batch, names, fits)), (after, self._in_row(batch, after, there))]

    def _in_row(self, batch: Batch, tokens: Tensor, fits: Tensor) -> Tensor:
        """(S, 9) cells of the picture that each token sees -> (S, T) places of its row."""
        length = len(batch.ids) // batch.rows
        first = (batch.ids == self.image).nonzero().flatten()[::9] % length  # (P,)
        ten = torch.cat((~fits.any(1, keepdim=True), fits), dim=1)
        pointed = torch.zeros(len(tokens), length, dtype=torch.bool)
        return pointed.scatter(1, first[batch.sees[tokens]][:, None] - 1 + torch.arange(10), ten)
