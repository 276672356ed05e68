"""Losses that align words with pictures: features close to their names' embeddings, names attending to their cells."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from picturebook.questions import plural_of
from picturebook.things import CATALOG, CATEGORY_PLURALS, COLOR_RGB, FIRST_SHAPE_ID, POSITION_PHRASES
from picturebook.words import NUMBER_WORDS

from .attention import AttentionTarget
from .batches import KIND_NAMES, CellLabels, TrainingBatch

SOFTMAX_SCALE = 10.0  # inverse temperature of the softmax over cosines


def first_token_id(tokenizer: Tokenizer, word: str) -> int:
    """The first token of a word that follows another word."""
    return int(tokenizer.encode(f"a {word}", add_special_tokens=False).ids[1])


class WordFeatureLoss:
    """Pulls the feature of a cell towards the embedding of the word for its content, in direction and in length.

    One way of matching then serves for every word: "is there a puppy?" is not learned separately from "a rabbit". The
    length term keeps residual updates comparable for image and text tokens; a cosine alone lets features become large.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kind_token_ids = torch.tensor([first_token_id(tokenizer, name) for name in KIND_NAMES])
        self.color_token_ids = torch.tensor([first_token_id(tokenizer, name) for name in COLOR_RGB])

    def compute_loss(self, features: Tensor, embedding: nn.Embedding, labels: CellLabels) -> Tensor:
        """(P, 9, D) features -> the loss: cross-entropies over cosines with word embeddings, and the length term."""
        length_loss = (features.square().mean() / embedding.weight.square().mean()).log().square()
        features = normalize(features, dim=-1) * SOFTMAX_SCALE
        kind_scores = features @ normalize(embedding(self.kind_token_ids), dim=-1).T
        color_scores = features @ normalize(embedding(self.color_token_ids), dim=-1).T
        color_loss = cross_entropy(color_scores.flatten(0, 1), labels.colors.flatten(), reduction="sum")
        kind_loss = cross_entropy(kind_scores.flatten(0, 1), labels.kinds.flatten())
        return length_loss + kind_loss + color_loss / (labels.colors >= 0).sum().clamp(min=1)


class AttentionTargetFinder:
    """Finds which tokens should attend to which cells of the latest picture; without it counting is learned late.

    - A name, a plural and the word for a category ("animals", "things") attend to the cells that show it; a shape after
      a colour attends to those of that colour.
    - The token after the words for a position attends to that position.
    - Before "two puppies" is generated, each token up to the name attends to the puppies.

    Args:
        num_layers: of the decoder. Names are supervised in its second layer; what comes next, which depends on what has
            been named already, in the last two: with one layer alone, a few in a hundred inventories counted a thing
            twice.
    """

    NAME_LAYER = 1

    def __init__(self, tokenizer: Tokenizer, num_layers: int) -> None:
        self.continuation_layers = (num_layers - 2, num_layers - 1)
        self.color_token_ids = torch.tensor([first_token_id(tokenizer, color) for color in COLOR_RGB])
        self.kinds_by_token = torch.zeros(tokenizer.get_vocab_size(), len(KIND_NAMES), dtype=torch.bool)
        for kind, name in enumerate(KIND_NAMES[1:], 1):
            category = CATALOG[kind].category if kind < FIRST_SHAPE_ID else "shape"
            for word in (name, plural_of(name), category, CATEGORY_PLURALS[category], "things"):
                self.kinds_by_token[first_token_id(tokenizer, word), kind] = True
        self.number_by_token = torch.zeros(len(self.kinds_by_token), dtype=torch.long)
        for number, word in [(1, "a"), (1, "an"), *enumerate(NUMBER_WORDS)]:
            for spelling in (word, word.capitalize()):
                self.number_by_token[first_token_id(tokenizer, spelling)] = number
        words = [
            [first_token_id(tokenizer, word) for word in place.split()[-2:]] for place in POSITION_PHRASES
        ]
        self.position_token_ids = torch.tensor(words)  # (9, 2): the last two words of each
        self.side_token_ids = self.position_token_ids[[3, 5], 1]

    def __call__(self, batch: TrainingBatch) -> list[AttentionTarget]:
        """The targets for names, positions and upcoming mentions."""
        name_positions, cell_mask = self._find_names(batch)
        upcoming = self._find_upcoming_mentions(batch, name_positions, cell_mask)
        return [
            AttentionTarget(self.NAME_LAYER, 0, name_positions, batch.image_index[name_positions], cell_mask),
            AttentionTarget(self.NAME_LAYER, 1, *self._find_position_phrases(batch)),
            *(AttentionTarget(layer, 0, *upcoming) for layer in self.continuation_layers),
        ]

    def _find_names(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        name_positions = (
            (self.kinds_by_token[batch.ids].any(1) & (batch.image_index >= 0)).nonzero().flatten()
        )
        cell_kinds, token_kinds = (
            batch.labels.kinds[batch.image_index[name_positions]],
            self.kinds_by_token[batch.ids[name_positions]],
        )  # (S, 9), (S, kinds)
        follows_color = batch.ids[name_positions - 1, None] == self.color_token_ids  # (S, colours)
        has_right_color = (
            batch.labels.colors[batch.image_index[name_positions]] == follows_color.int().argmax(1)[:, None]
        )
        return name_positions, token_kinds.gather(1, cell_kinds) & (
            has_right_color | ~follows_color.any(1, keepdim=True)
        )

    def _find_position_phrases(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        last_two_ids = torch.stack((batch.ids.roll(2), batch.ids.roll(1)), dim=1)  # (N, 2)
        is_phrase_end = (last_two_ids[:, None] == self.position_token_ids).all(-1) & (batch.image_index >= 0)[
            :, None
        ]  # (N, 9)
        is_phrase_end[:, [1, 7]] &= ~torch.isin(batch.ids, self.side_token_ids)[
            :, None
        ]  # "at the top" may go on: "left"
        token_positions, cell = is_phrase_end.nonzero(as_tuple=True)
        return token_positions, batch.image_index[token_positions], cell[:, None] == torch.arange(9)

    def _find_upcoming_mentions(
        self, batch: TrainingBatch, name_positions: Tensor, cell_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Only mentions whose number or article matches the count: of two puppies one may be meant."""
        has_color_word = torch.isin(batch.ids[name_positions - 1], self.color_token_ids)
        number_positions = name_positions - 1 - has_color_word.long()
        is_counted = (
            (batch.targets[name_positions - 1] >= 0)
            & (self.number_by_token[batch.ids[number_positions]] == cell_mask.sum(1))
            & cell_mask.any(1)
        )
        tokens = torch.cat(
            (
                number_positions[is_counted] - 1,
                number_positions[is_counted],
                name_positions[is_counted & has_color_word] - 1,
            )
        )
        pictures = batch.image_index[name_positions]
        return (
            tokens,
            torch.cat((pictures[is_counted], pictures[is_counted], pictures[is_counted & has_color_word])),
            torch.cat((cell_mask[is_counted], cell_mask[is_counted], cell_mask[is_counted & has_color_word])),
        )
