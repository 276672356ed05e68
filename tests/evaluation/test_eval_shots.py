"""Few-shot examples: draws of one row do not depend on others; the nearest picture is the last."""

import numpy as np
import pytest
import torch
from eval_rows import PICTURES, evaluation_row

import idefics
from idefics.engine.encoder_cache import encode_frames
from idefics.errors import BadSetting
from idefics.evaluate.shots import EmbeddingFile, NearestShots, RandomShots, choose_support

NAMES = sorted(PICTURES)
SUPPORT = {name: evaluation_row(name, name) for name in NAMES}


def names(rows):
    return [row.name for row in rows]


def test_a_draw_depends_on_the_seed_and_the_row_alone():
    queries = [evaluation_row(f"q{number}") for number in range(30)]
    draws = [names(RandomShots(SUPPORT, 2, seed=1).select(one)) for one in queries]
    again = RandomShots(dict(reversed(SUPPORT.items())), 2, seed=1)
    assert [names(again.select(one)) for one in reversed(queries)] == draws[::-1]
    assert [names(RandomShots(SUPPORT, 2, seed=2).select(one)) for one in queries] != draws
    assert len({tuple(one) for one in draws}) > 10
    assert all(len(set(one)) == 2 for one in draws)


def test_neither_the_row_nor_its_picture_is_an_example():
    for number in range(40):
        drawn = names(RandomShots(SUPPORT, 5, seed=number).select(evaluation_row("q", "tower.png")))
        assert "tower.png" not in drawn
        assert len(drawn) == 5


def test_the_nearest_picture_is_the_last():
    angles = dict(zip(NAMES, np.linspace(0.1, 1.5, len(NAMES)), strict=True))
    angles["q"] = 0.0

    def embed(row):
        angle = angles[row.name]
        return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32) * 7  # length does not count

    query = evaluation_row("q", NAMES[0])
    assert names(NearestShots(SUPPORT, 3, embed).select(query)) == [NAMES[3], NAMES[2], NAMES[1]]


def test_too_few_rows_for_the_shots():
    with pytest.raises(BadSetting, match="shots is 7, but there are only 7 rows to take examples from"):
        choose_support(SUPPORT.values(), 0, 7)


def test_rows_without_answer_are_no_support():
    rows = [*SUPPORT.values(), evaluation_row("empty", references=()), evaluation_row("broken", media=None)]
    assert set(choose_support(rows, 0, 2)) == set(NAMES)


def test_embeddings_from_a_file(tmp_path):
    np.save(tmp_path / "e.npy", np.eye(3))
    (tmp_path / "e.ids.txt").write_text("a\nb\nc\n")
    file = EmbeddingFile(tmp_path / "e.npy")
    assert file.embed(evaluation_row("x", id="b")).tolist() == [0, 1, 0]
    (tmp_path / "e.ids.txt").write_text("a\nb\n")
    with pytest.raises(BadSetting, match=r"has the shape \(3, 3\), and .*e.ids.txt 2 lines"):
        EmbeddingFile(tmp_path / "e.npy")


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_the_embedding_of_a_picture_is_the_mean_of_its_features(model):
    with idefics.load(model) as vlm:
        path = PICTURES["tower.png"]
        vector = vlm.embed(path)
        (image,) = vlm.prompt([idefics.Picture(path)], detail="low").pictures
        features = encode_frames(vlm.engine.model, image.frames, 1)
        assert vector.shape == features[0].shape[-1:]
        assert torch.allclose(vector, torch.cat(features).mean(0).float(), atol=1e-5)
        assert torch.equal(vector, vlm.embed(path.read_bytes()))
        assert not torch.allclose(vector, vlm.embed(PICTURES["door.png"]), atol=1e-2)
