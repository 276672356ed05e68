"""What ties words to what pictures show: features near their names, and names that point to their cells."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from picturebook.questions import plural
from picturebook.things import CATALOG, COLORS, FIRST_SHAPE, KIND_PLURALS, PLACES
from picturebook.words import NUMBERS

from .attention import Pointing
from .batches import KIND_NAMES, Batch, Labels

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
    """Which tokens point to which cells of the latest picture. Else looking and counting are found late, or never.

    - A name, a plural and the word for a whole kind ("animals", "things") point to the cells that show it; a shape
      after a colour to those of that colour.
    - What follows the words of a place points to that place.
    - Before "two puppies" is said, each token up to the name points to the puppies.

    Args:
        layers: of the decoder. Names are looked up in its second layer; what to say next, which needs what has been
            named already, in the last two: told in one alone, a few in a hundred inventories counted a thing twice.
    """

    LOOKS = 1

    def __init__(self, tokenizer: Tokenizer, layers: int) -> None:
        self.says = (layers - 2, layers - 1)
        self.colors = torch.tensor([first_token(tokenizer, color) for color in COLORS])
        self.fits = torch.zeros(tokenizer.get_vocab_size(), len(KIND_NAMES), dtype=torch.bool)
        for kind, name in enumerate(KIND_NAMES[1:], 1):
            sort = CATALOG[kind].kind if kind < FIRST_SHAPE else "shape"
            for word in (name, plural(name), sort, KIND_PLURALS[sort], "things"):
                self.fits[first_token(tokenizer, word), kind] = True
        self.numbers = torch.zeros(len(self.fits), dtype=torch.long)
        for number, word in [(1, "a"), (1, "an"), *enumerate(NUMBERS)]:
            for spelling in (word, word.capitalize()):
                self.numbers[first_token(tokenizer, spelling)] = number
        words = [[first_token(tokenizer, word) for word in place.split()[-2:]] for place in PLACES]
        self.places = torch.tensor(words)  # (9, 2): the last two words of each
        self.sides = self.places[[3, 5], 1]

    def __call__(self, batch: Batch) -> list[Pointing]:
        """Names, places, and what will be said."""
        names, cells = self._names(batch)
        said = self._said(batch, names, cells)
        return [
            Pointing(self.LOOKS, 0, names, batch.sees[names], cells),
            Pointing(self.LOOKS, 1, *self._places(batch)),
            *(Pointing(layer, 0, *said) for layer in self.says),
        ]

    def _names(self, batch: Batch) -> tuple[Tensor, Tensor]:
        names = (self.fits[batch.ids].any(1) & (batch.sees >= 0)).nonzero().flatten()
        shown, fits = batch.labels.kinds[batch.sees[names]], self.fits[batch.ids[names]]  # (S, 9), (S, kinds)
        before = batch.ids[names - 1, None] == self.colors  # (S, colours)
        right = batch.labels.colors[batch.sees[names]] == before.int().argmax(1)[:, None]
        return names, fits.gather(1, shown) & (right | ~before.any(1, keepdim=True))

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        said = torch.stack((batch.ids.roll(2), batch.ids.roll(1)), dim=1)  # (N, 2)
        ends = (said[:, None] == self.places).all(-1) & (batch.sees >= 0)[:, None]  # (N, 9)
        ends[:, [1, 7]] &= ~torch.isin(batch.ids, self.sides)[:, None]  # "at the top" may go on: "left"
        after, cell = ends.nonzero(as_tuple=True)
        return after, batch.sees[after], cell[:, None] == torch.arange(9)

    def _said(self, batch: Batch, names: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Only where a number or an article says how many there are: of two puppies one may be meant."""
        colored = torch.isin(batch.ids[names - 1], self.colors)
        number = names - 1 - colored.long()
        meant = (
            (batch.targets[names - 1] >= 0) & (self.numbers[batch.ids[number]] == cells.sum(1)) & cells.any(1)
        )
        tokens = torch.cat((number[meant] - 1, number[meant], names[meant & colored] - 1))
        pictures = batch.sees[names]
        return (
            tokens,
            torch.cat((pictures[meant], pictures[meant], pictures[meant & colored])),
            torch.cat((cells[meant], cells[meant], cells[meant & colored])),
        )
