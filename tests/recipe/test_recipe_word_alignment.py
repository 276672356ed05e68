"""Alignment of words with pictures: attention targets, and the losses of heads and features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import idefics
from idefics.models import read_checkpoint
from idefics.nn.attention import LayerCrossKV
from idefics.processing import checkpoint_settings
from picturebook import ConversationSample
from picturebook.scene import Scene, SceneItem
from picturebook.things import class_id_of
from picturebook.turns import assistant_turn, user_turn
from recipe.attention import (
    AttentionTarget,
    SupervisedCrossAttention,
    SupervisedSelfAttention,
    attention_divergence,
)
from recipe.batches import KIND_NAMES, CellLabels, collate, compute_cell_labels
from recipe.encoding import SampleEncoder
from recipe.word_alignment import AttentionTargetFinder, WordFeatureLoss

DEMO = Path(idefics.__file__).parent / "demo" / "idefics3"
SHAPES_SCENE = Scene(
    "gray",
    "plain",
    False,
    (
        SceneItem(class_id_of("red circle"), 0),
        SceneItem(class_id_of("blue circle"), 4),
        SceneItem(class_id_of("green star"), 7),
    ),
)
ONE_SHAPE_SCENE = Scene("gray", "plain", False, (SceneItem(class_id_of("red square"), 8),))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def image_plan():
    checkpoint = read_checkpoint(DEMO)
    return checkpoint.family.read_image_config(
        checkpoint.config, checkpoint_settings.read_preprocessor_config(DEMO)
    )


def find_target_words(tokenizer, plan, *samples):
    """For names, positions and upcoming mentions: the tokens, and the cells that they should attend to."""
    encoder = SampleEncoder(tokenizer, plan.tokens_per_frame)
    batch = collate([encoder(sample) for sample in samples], plan, pad_id=0)
    found = []
    for pointing in AttentionTargetFinder(tokenizer, num_layers=5)(batch):
        words = [tokenizer.decode([token]).strip() for token in batch.ids[pointing.token_positions].tolist()]
        assert torch.equal(batch.image_index[pointing.token_positions], pointing.image_indices)
        found.append(
            [
                (word, cells.nonzero().flatten().tolist())
                for word, cells in zip(words, pointing.cell_mask, strict=True)
            ]
        )
    return found


def make_question_sample(words, answer="Yes."):
    return ConversationSample("question", (SHAPES_SCENE,), (user_turn(0, words), assistant_turn(answer)))


def test_names_point_to_the_cells_that_show_them(tokenizer, image_plan):
    names, *_ = find_target_words(
        tokenizer,
        image_plan,
        make_question_sample("Is the red circle above the star? Is there a cross or a blue star?"),
    )
    assert names == [("circle", [0]), ("star", [7]), ("cross", []), ("star", [])]


def test_a_name_without_a_colour_points_to_all_that_it_fits(tokenizer, image_plan):
    names, *_ = find_target_words(tokenizer, image_plan, make_question_sample("Is there a circle?"))
    assert names == [("circle", [0, 4])]


def test_plurals_and_whole_kinds_point_too(tokenizer, image_plan):
    words = "How many circles? How many blue circles? How many shapes, animals, things?"
    names, *_ = find_target_words(tokenizer, image_plan, make_question_sample(words))
    assert names == [
        ("circles", [0, 4]), ("circles", [4]), ("shapes", [0, 4, 7]), ("animals", []), ("things", [0, 4, 7]),
    ]  # fmt: skip


def test_names_point_into_the_latest_picture_of_their_own_row(tokenizer, image_plan):
    turns = (
        user_turn(0, "Is there a star?"),
        assistant_turn("Yes."),
        user_turn(1, "And a square?"),
        assistant_turn("Yes."),
    )
    chat = ConversationSample("chat", (SHAPES_SCENE, ONE_SHAPE_SCENE), turns)
    names, *_ = find_target_words(tokenizer, image_plan, chat, chat)
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
def test_the_token_after_a_position_attends_to_it(tokenizer, image_plan, place, cell):
    assert find_target_words(tokenizer, image_plan, make_question_sample(f"What is {place}?", "Nothing."))[
        1
    ] == [("?", [cell])]


def test_directions_are_no_positions(tokenizer, image_plan):
    assert (
        find_target_words(
            tokenizer, image_plan, make_question_sample("Is the star left of the circle?", "No.")
        )[1]
        == []
    )


def test_upcoming_mentions_are_attention_targets(tokenizer, image_plan):
    """From the token before the number or article up to the last before the name."""
    inventory = "Two circles, a red circle and a green star."
    said = find_target_words(
        tokenizer, image_plan, make_question_sample("What is in this image?", inventory)
    )[2]
    circles = [(":", [0, 4]), ("Two", [0, 4]), (",", [0]), ("a", [0]), ("red", [0])]
    assert sorted(said) == sorted([*circles, ("and", [7]), ("a", [7]), ("green", [7])])


@pytest.mark.parametrize(
    "words", ["A circle.", "Three circles.", "A cross.", "A small circle at the top left."]
)
def test_only_mentions_with_the_right_count_are_attention_targets(tokenizer, image_plan, words):
    """Of two circles one may be meant, and absent things have no cells."""
    assert (
        find_target_words(tokenizer, image_plan, make_question_sample("What is in this image?", words))[2]
        == []
    )


def test_words_of_the_user_are_no_upcoming_mentions(tokenizer, image_plan):
    assert find_target_words(tokenizer, image_plan, make_question_sample("Is there a star?"))[2] == []


def test_equal_shares_have_no_divergence():
    """Equal attention to two targets has no loss; attention elsewhere or unequal shares have."""
    pointed_to = torch.tensor([[True, True, False]])
    assert attention_divergence(torch.tensor([[9.0, 9.0, -50.0]]), pointed_to) < 1e-6
    assert attention_divergence(torch.tensor([[9.0, 9.0, 9.0]]), pointed_to) == pytest.approx(
        np.log(1.5), abs=1e-6
    )
    assert attention_divergence(torch.tensor([[9.0, 6.0, -50.0]]), pointed_to) > 0.5


def make_target(tokens, cells, layer=3):
    cell_mask = torch.zeros(len(tokens), 9, dtype=torch.bool)
    cell_mask[torch.arange(len(tokens)), cells] = True
    return AttentionTarget(layer, 1, torch.tensor(tokens), torch.arange(len(tokens)), cell_mask)


def test_a_head_that_attends_to_its_targets_has_no_divergence():
    """Two rows of twelve tokens, mark and cells at 1 to 10; the last of each points to one cell, and to the mark."""
    k = torch.zeros(2, 12, 2, 4)
    k[0, [1, 4], 1] = k[1, [1, 9], 1] = torch.tensor([9.0, 0, 0, 0])
    q = torch.zeros(2, 12, 2, 4)
    q[:, 11, 1] = torch.tensor([9.0, 0, 0, 0])
    q, k = q.flatten(0, 1), k.flatten(0, 1)

    def loss(cells, layer=3):
        attn = SupervisedSelfAttention(2, [make_target([11, 23], cells)], torch.tensor([1, 1]))
        attn.self_attention(layer, q, k, torch.zeros(24, 2, 4))
        return attn.loss

    assert loss([2, 7]) < 1e-6
    assert loss([3, 7]) > 5
    assert loss([3, 7], layer=2) == 0


def test_cross_attention_heads_are_supervised_too():
    """The same for cross-attention: nine cells, then the rest position."""
    keys = torch.zeros(2, 12, 2, 4)
    keys[0, [2, 9], 1] = keys[1, [7, 9], 1] = torch.tensor([9.0, 0, 0, 0])
    q = torch.zeros(6, 2, 4)
    q[[2, 5], 1] = torch.tensor([9.0, 0, 0, 0])
    memory, sees = [LayerCrossKV(keys, keys)], torch.tensor([0, 0, 0, 1, 1, 1])

    def loss(cells, layer=0):
        attn = SupervisedCrossAttention(2, memory, sees, [make_target([2, 5], cells, layer)])
        attn.cross_attention(0, q)
        return attn.loss

    assert loss([2, 7]) < 1e-6
    assert loss([3, 7]) > 5
    assert loss([3, 7], layer=1) == 0


def test_the_loss_pulls_features_towards_their_words(tokenizer):
    """The loss decreases with the angle to the right word, and with the difference in length."""
    names, embedding = WordFeatureLoss(tokenizer), torch.nn.Embedding(tokenizer.get_vocab_size(), 32)
    puppy = KIND_NAMES.index("puppy")
    cells = torch.full((1, 9), puppy)
    labels = CellLabels(cells, torch.full_like(cells, -100), *[cells] * 4, torch.zeros(1))
    right = embedding.weight[names.kind_token_ids[puppy]].detach().expand(1, 9, 32)
    wrong = embedding.weight[names.kind_token_ids[puppy + 1]].detach().expand(1, 9, 32)
    loss = names.compute_loss(right, embedding, labels)
    assert loss < names.compute_loss(wrong, embedding, labels)
    assert loss < names.compute_loss(right * 10, embedding, labels)
    assert len(set(names.kind_token_ids.tolist())) > 0.9 * len(KIND_NAMES), (
        "a name's first token tells it from the others"
    )


def test_cell_labels_count_equal_things():
    """Counts of equal things, counts of equal kinds, and the order of mention."""
    shown = {0: "red circle", 4: "blue square", 5: "red circle", 7: "green star", 8: "blue circle"}
    items = tuple(SceneItem(class_id_of(name), cell) for cell, name in shown.items())
    labels = compute_cell_labels([Scene("gray", "plain", False, items)])
    assert labels.num_same.tolist() == [[2, 0, 0, 0, 1, 2, 0, 1, 1]]
    assert labels.num_same_kind.tolist() == [[3, 0, 0, 0, 1, 3, 0, 1, 3]]
    assert labels.mention_order.tolist() == [[1, 0, 0, 0, 2, 1, 0, 3, 4]]
