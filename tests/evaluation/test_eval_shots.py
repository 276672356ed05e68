"""Few-shot examples: draws of one row do not depend on others; the nearest picture is the last."""

import numpy as np
import pytest
import torch
from eval_rows import PICTURES, evaluation_row

import idefics
from idefics.batch.sources.settings import file_media
from idefics.engine.encoder_cache import encode_frames
from idefics.errors import BadPicture, BadSetting
from idefics.evaluate.shots import EmbeddingFile, NearestShots, PictureContents, RandomShots, choose_support

NAMES = sorted(PICTURES)
SUPPORT = {name: evaluation_row(name, name) for name in NAMES}


def names(rows):
    return [row.name for row in rows]


def random_shots(support, num_shots, seed=0):
    return RandomShots(support, num_shots, PictureContents(), seed)


def test_a_draw_depends_on_the_seed_and_the_row_alone():
    queries = [evaluation_row(f"q{number}") for number in range(30)]
    draws = [names(random_shots(SUPPORT, 2, seed=1).select(one)) for one in queries]
    again = random_shots(dict(reversed(SUPPORT.items())), 2, seed=1)
    assert [names(again.select(one)) for one in reversed(queries)] == draws[::-1]
    assert [names(random_shots(SUPPORT, 2, seed=2).select(one)) for one in queries] != draws
    assert len({tuple(one) for one in draws}) > 10
    assert all(len(set(one)) == 2 for one in draws)


def test_neither_the_row_nor_its_picture_is_an_example():
    for number in range(40):
        drawn = names(random_shots(SUPPORT, 5, seed=number).select(evaluation_row("q", "tower.png")))
        assert "tower.png" not in drawn
        assert len(drawn) == 5


def test_the_nearest_picture_is_the_last():
    angles = dict(zip(NAMES, np.linspace(0.1, 1.5, len(NAMES)), strict=True))
    angles["q"] = 0.0

    def embed(row):
        angle = angles[row.name]
        return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32) * 7  # length does not count

    query = evaluation_row("q", NAMES[0])
    assert names(NearestShots(SUPPORT, 3, PictureContents(), embed).select(query)) == [
        NAMES[3],
        NAMES[2],
        NAMES[1],
    ]


@pytest.fixture
def copies(tmp_path):
    """Rows about copies of two of the demo's pictures, and about pictures that cannot be read."""
    contents = {"copy": "tower.png", "door": "door.png", "cut": "puppy.png", "empty": None}
    rows = {}
    for name, picture in contents.items():
        data = b"" if picture is None else PICTURES[picture].read_bytes()
        path = tmp_path / f"{name}.png"
        path.write_bytes(data[: len(data) // 2] if name == "cut" else data)
        rows[name] = evaluation_row(name, media=file_media(path, str(path)))
    path = tmp_path / "missing.png"
    return rows | {"missing": evaluation_row("missing", media=file_media(path, str(path)))}


def test_a_picture_is_known_by_its_content_and_has_to_be_readable(copies):
    query = evaluation_row("q", "tower.png")
    for number in range(9):
        assert names(random_shots(copies, 1, seed=number).select(query)) == ["door"]

    def embed(row):
        return np.ones(2, dtype=np.float32)

    assert names(NearestShots(copies, 1, PictureContents(), embed).select(query)) == ["door"]
    with pytest.raises(BadSetting, match="the examples with another picture than q are only 1"):
        random_shots(copies, 2).select(query)
    with pytest.raises(BadPicture, match=r"missing.png: no such file"):
        random_shots(copies, 1).select(copies["missing"])


def test_rows_without_an_embedding_are_no_examples():
    def embed(row):
        if row.name != "tower.png":
            raise BadPicture("not there")
        return np.ones(2, dtype=np.float32)

    with pytest.raises(
        BadSetting, match="shots is 2, but only 1 of 7 rows to take examples from have an emb"
    ):
        NearestShots(SUPPORT, 2, PictureContents(), embed)


def test_too_few_rows_for_the_shots():
    with pytest.raises(BadSetting, match="shots is 7, but the rows to take examples from are only 7: there"):
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
    (tmp_path / "e.ids.txt").write_text("a\nb\nb\n")
    with pytest.raises(BadSetting, match="has the id 'b' twice"):
        EmbeddingFile(tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([["x", "y"]]), "is no array of numbers"),
        (np.full((1, 2), np.nan), "has numbers that are infinite or NaN"),
        (None, "cannot be read from"),
    ],
)
def test_malformed_embeddings(tmp_path, array, message):
    path = tmp_path / "e.npy"
    path.write_bytes(b"") if array is None else np.save(path, array)
    (tmp_path / "e.ids.txt").write_text("a\n")
    with pytest.raises(BadSetting, match=message):
        EmbeddingFile(path)
    np.savez(tmp_path / "e.npz", np.eye(1))
    with pytest.raises(BadSetting, match="is no array of numbers"):
        EmbeddingFile(tmp_path / "e.npz")


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
