"""Words and what pictures show: where names and places point to, and what a head is told that looks elsewhere."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import idefics
from idefics.models import read_checkpoint
from idefics.processing import settings
from picturebook import Sample
from picturebook.scene import Item, Scene
from picturebook.things import class_of
from picturebook.turns import assistant, user
from recipe.attention import PointingAttn
from recipe.batches import KIND_NAMES, Labels, collate, labels_of
from recipe.encoding import Encoder
from recipe.names import Names, Pointers

DEMO = Path(idefics.__file__).parent / "demo" / "idefics3"
SHAPES = Scene(
    "gray",
    "plain",
    False,
    (Item(class_of("red circle"), 0), Item(class_of("blue circle"), 4), Item(class_of("green star"), 7)),
)
EMPTY = Scene("gray", "plain", False, (Item(class_of("red square"), 8),))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def plan():
    checkpoint = read_checkpoint(DEMO)
    return checkpoint.family.images(checkpoint.config, settings.preprocessor(DEMO))


def pointed(tokenizer, plan, *samples):
    """For names and for places: the words that point, and the cells, "mark" for the mark before them."""
    encoder = Encoder(tokenizer, plan.tokens)
    batch = collate([encoder(sample) for sample in samples], plan, pad=0)
    ids = batch.ids.view(batch.rows, -1)
    found = []
    for tokens, places in Pointers(tokenizer, Names(tokenizer))(batch):
        told = []
        for token, row_places in zip(tokens.tolist(), places, strict=True):
            row = ids[token // ids.shape[1]]
            seen = batch.sees.view(batch.rows, -1)[token // ids.shape[1]]
            picture = batch.sees[token] - seen[seen >= 0].min()
            first = (row == encoder.image).nonzero().flatten()[9 * picture]
            cells = [cell - 1 for cell in (row_places.nonzero().flatten() - first + 1).tolist()]
            told.append(
                (tokenizer.decode([batch.ids[token]]).strip(), ["mark" if c < 0 else c for c in cells])
            )
        found.append(told)
    return found


def test_names_point_to_the_cells_that_show_them(tokenizer, plan):
    question = "Is the red circle above the star? How many circles? Is there a cross or a blue star?"
    names, _ = pointed(tokenizer, plan, Sample("question", (SHAPES,), (user(0, question), assistant("Yes."))))
    assert names == [("circle", [0]), ("star", [7]), ("cross", ["mark"]), ("star", ["mark"])]


def test_a_name_without_a_colour_points_to_all_that_it_fits(tokenizer, plan):
    names, _ = pointed(
        tokenizer, plan, Sample("question", (SHAPES,), (user(0, "Is there a circle?"), assistant("Yes.")))
    )
    assert names == [("circle", [0, 4])]


def test_names_point_into_the_latest_picture_of_their_own_row(tokenizer, plan):
    turns = (user(0, "Is there a star?"), assistant("Yes."), user(1, "And a square?"), assistant("Yes."))
    chat = Sample("chat", (SHAPES, EMPTY), turns)
    names, _ = pointed(tokenizer, plan, chat, chat)
    assert names == [("star", [7]), ("square", [8])] * 2


@pytest.mark.parametrize(
    ("place", "cell"),
    [
        ("at the top left", 0),
        ("at the top", 1),
        ("on the left", 3),
        ("in the middle", 4),
        ("at the bottom right", 8),
    ],
)
def test_what_follows_a_place_points_to_it(tokenizer, plan, place, cell):
    sample = Sample("question", (SHAPES,), (user(0, f"What is {place}?"), assistant("Nothing.")))
    assert pointed(tokenizer, plan, sample)[1] == [("?", [cell])]


def test_directions_are_no_places(tokenizer, plan):
    sample = Sample("question", (SHAPES,), (user(0, "Is the star left of the circle?"), assistant("No.")))
    assert pointed(tokenizer, plan, sample)[1] == []


def test_a_head_that_looks_where_it_shall_misses_nothing():
    """Two rows of four tokens; the last of each points to the second. Keys later than a token do not count."""
    k = torch.zeros(8, 1, 4)
    k[1] = k[5] = torch.tensor([9.0, 0, 0, 0])
    q = torch.zeros(8, 1, 4)
    q[3] = q[7] = torch.tensor([9.0, 0, 0, 0])
    tokens, places = torch.tensor([3, 7]), torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]]).bool()
    attn = PointingAttn(2, [(tokens, places)])
    attn.self_(PointingAttn.LAYER, q, k, torch.zeros(8, 1, 4))
    assert attn.loss < 1e-6
    elsewhere = PointingAttn(2, [(tokens, places.roll(1, dims=1))])
    elsewhere.self_(PointingAttn.LAYER, q, k, torch.zeros(8, 1, 4))
    assert elsewhere.loss > 30
    other = PointingAttn(2, [(tokens, places.roll(1, dims=1))])
    other.self_(PointingAttn.LAYER + 1, q, k, torch.zeros(8, 1, 4))
    assert other.loss == 0


def test_features_are_drawn_to_their_words(tokenizer):
    """The loss falls with the angle to the right word, and with a length like that of words."""
    names, embedding = Names(tokenizer), torch.nn.Embedding(tokenizer.get_vocab_size(), 32)
    puppy = KIND_NAMES.index("puppy")
    cells = torch.full((1, 9), puppy)
    labels = Labels(cells, torch.full_like(cells, -100), *[cells] * 4, torch.zeros(1))
    right = embedding.weight[names.kinds[puppy]].detach().expand(1, 9, 32)
    wrong = embedding.weight[names.kinds[puppy + 1]].detach().expand(1, 9, 32)
    loss = names.loss(right, embedding, labels)
    assert loss < names.loss(wrong, embedding, labels)
    assert loss < names.loss(right * 10, embedding, labels)
    assert len(set(names.kinds.tolist())) > 0.9 * len(KIND_NAMES), (
        "a name's first token tells it from the others"
    )


def test_a_cell_says_how_many_are_like_it():
    """The same thing in the same colour; of its kind, in any; and when an inventory comes to it."""
    shown = {0: "red circle", 4: "blue square", 5: "red circle", 7: "green star", 8: "blue circle"}
    items = tuple(Item(class_of(name), cell) for cell, name in shown.items())
    labels = labels_of([Scene("gray", "plain", False, items)])
    assert labels.alike.tolist() == [[2, 0, 0, 0, 1, 2, 0, 1, 1]]
    assert labels.kin.tolist() == [[3, 0, 0, 0, 1, 3, 0, 1, 3]]
    assert labels.turns.tolist() == [[1, 0, 0, 0, 2, 1, 0, 3, 4]]
