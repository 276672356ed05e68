"""Words and what pictures show: what points where, and what a head is told that looks elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import idefics
from idefics.models import read_checkpoint
from idefics.nn.attention import LayerMemory
from idefics.processing import settings
from picturebook import Sample
from picturebook.scene import Item, Scene
from picturebook.things import class_of
from picturebook.turns import assistant, user
from recipe.attention import Pointing, PointingAttn, TrainingAttn, missed
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
    """For names, for places, and for what will be said: the tokens that point, and the cells of their picture."""
    encoder = Encoder(tokenizer, plan.tokens)
    batch = collate([encoder(sample) for sample in samples], plan, pad=0)
    found = []
    for pointing in Pointers(tokenizer, layers=5)(batch):
        words = [tokenizer.decode([token]).strip() for token in batch.ids[pointing.tokens].tolist()]
        assert torch.equal(batch.sees[pointing.tokens], pointing.pictures)
        found.append(
            [
                (word, cells.nonzero().flatten().tolist())
                for word, cells in zip(words, pointing.cells, strict=True)
            ]
        )
    return found


def question(words, answer="Yes."):
    return Sample("question", (SHAPES,), (user(0, words), assistant(answer)))


def test_names_point_to_the_cells_that_show_them(tokenizer, plan):
    names, *_ = pointed(
        tokenizer, plan, question("Is the red circle above the star? Is there a cross or a blue star?")
    )
    assert names == [("circle", [0]), ("star", [7]), ("cross", []), ("star", [])]


def test_a_name_without_a_colour_points_to_all_that_it_fits(tokenizer, plan):
    names, *_ = pointed(tokenizer, plan, question("Is there a circle?"))
    assert names == [("circle", [0, 4])]


def test_plurals_and_whole_kinds_point_too(tokenizer, plan):
    words = "How many circles? How many blue circles? How many shapes, animals, things?"
    names, *_ = pointed(tokenizer, plan, question(words))
    assert names == [
        ("circles", [0, 4]), ("circles", [4]), ("shapes", [0, 4, 7]), ("animals", []), ("things", [0, 4, 7]),
    ]  # fmt: skip


def test_names_point_into_the_latest_picture_of_their_own_row(tokenizer, plan):
    turns = (user(0, "Is there a star?"), assistant("Yes."), user(1, "And a square?"), assistant("Yes."))
    chat = Sample("chat", (SHAPES, EMPTY), turns)
    names, *_ = pointed(tokenizer, plan, chat, chat)
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
    assert pointed(tokenizer, plan, question(f"What is {place}?", "Nothing."))[1] == [("?", [cell])]


def test_directions_are_no_places(tokenizer, plan):
    assert pointed(tokenizer, plan, question("Is the star left of the circle?", "No."))[1] == []


def test_what_will_be_said_is_looked_at(tokenizer, plan):
    """From the token before the number or article up to the last before the name."""
    inventory = "Two circles, a red circle and a green star."
    said = pointed(tokenizer, plan, question("What is in this image?", inventory))[2]
    circles = [(":", [0, 4]), ("Two", [0, 4]), (",", [0]), ("a", [0]), ("red", [0])]
    assert sorted(said) == sorted([*circles, ("and", [7]), ("a", [7]), ("green", [7])])


@pytest.mark.parametrize(
    "words", ["A circle.", "Three circles.", "A cross.", "A small circle at the top left."]
)
def test_only_what_the_number_fits_is_looked_at(tokenizer, plan, words):
    """Of two circles one may be meant, and what is not there cannot be looked at."""
    assert pointed(tokenizer, plan, question("What is in this image?", words))[2] == []


def test_words_of_the_user_are_not_said(tokenizer, plan):
    assert pointed(tokenizer, plan, question("Is there a star?"))[2] == []


def test_equal_shares_miss_nothing():
    """Of two places pointed to each has one half; a third one's share, or an unequal one, is missed."""
    pointed_to = torch.tensor([[True, True, False]])
    assert missed(torch.tensor([[9.0, 9.0, -50.0]]), pointed_to) < 1e-6
    assert missed(torch.tensor([[9.0, 9.0, 9.0]]), pointed_to) == pytest.approx(np.log(1.5), abs=1e-6)
    assert missed(torch.tensor([[9.0, 6.0, -50.0]]), pointed_to) > 0.5


def pointing(tokens, cells, layer=3):
    marked = torch.zeros(len(tokens), 9, dtype=torch.bool)
    marked[torch.arange(len(tokens)), cells] = True
    return Pointing(layer, 1, torch.tensor(tokens), torch.arange(len(tokens)), marked)


def test_a_head_that_looks_where_it_shall_misses_nothing():
    """Two rows of twelve tokens, mark and cells at 1 to 10; the last of each points to one cell, and to the mark."""
    k = torch.zeros(2, 12, 2, 4)
    k[0, [1, 4], 1] = k[1, [1, 9], 1] = torch.tensor([9.0, 0, 0, 0])
    q = torch.zeros(2, 12, 2, 4)
    q[:, 11, 1] = torch.tensor([9.0, 0, 0, 0])
    q, k = q.flatten(0, 1), k.flatten(0, 1)

    def loss(cells, layer=3):
        attn = PointingAttn(2, [pointing([11, 23], cells)], torch.tensor([1, 1]))
        attn.self_(layer, q, k, torch.zeros(24, 2, 4))
        return attn.loss

    assert loss([2, 7]) < 1e-6
    assert loss([3, 7]) > 5
    assert loss([3, 7], layer=2) == 0


def test_heads_beside_pictures_are_told_too():
    """The same among latents: the nine cells come first, then the rest."""
    keys = torch.zeros(2, 12, 2, 4)
    keys[0, [2, 9], 1] = keys[1, [7, 9], 1] = torch.tensor([9.0, 0, 0, 0])
    q = torch.zeros(6, 2, 4)
    q[[2, 5], 1] = torch.tensor([9.0, 0, 0, 0])
    memory, sees = [LayerMemory(keys, keys)], torch.tensor([0, 0, 0, 1, 1, 1])

    def loss(cells, layer=0):
        attn = TrainingAttn(2, memory, sees, [pointing([2, 5], cells, layer)])
        attn.cross(0, q)
        return attn.loss

    assert loss([2, 7]) < 1e-6
    assert loss([3, 7]) > 5
    assert loss([3, 7], layer=1) == 0


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
