"""Training rows made of random prompts of tiny models (`models.tiny`)."""

import numpy as np

from idefics.train.rows import RowsDigest, TrainingRow
from models import tiny


class Rows(list):
    """A list of rows; implements `TrainingRows`."""

    def digest(self):
        tokens = [(row.ids.tolist(), row.is_target.tolist()) for row in self]
        pictures = [row.picture_keys for row in self]
        return RowsDigest(num_rows=len(self), tokens=repr(tokens), pictures=repr(pictures))


def make_row(model, scene, num_targets=3, name=None):
    """A row whose last tokens are learned; `scene` as in `tiny.make_random_prompt`."""
    prompt = tiny.make_random_prompt(model, scene)
    return row_of_prompt(prompt, num_targets, name or scene)


def row_of_prompt(prompt, num_targets, name):
    """A row of a prompt whose last tokens are learned."""
    is_target = np.zeros(len(prompt), bool)
    is_target[len(prompt) - num_targets :] = True
    return TrainingRow(
        name=name,
        ids=np.array(prompt.ids, np.int32),
        is_target=is_target,
        image_index=np.array(prompt.image_index, np.int32),
        image_token_positions=tuple(np.array(one) for one in prompt.image_token_positions),
        picture_keys=tuple(picture.content_hash for picture in prompt.pictures),
        read_pictures=lambda: prompt.pictures,
    )
