"""No picture is taken for another in a cache: content hashes against known ways of forging equal ones."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from idefics.engine.page_pool import PAGE_SIZE, PageKeys
from idefics.messages import ImageDetail, Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess, preprocess_image
from idefics.prompt import PreprocessedImage, Prompt
from processing.pictures_tiny import CROSS_ATTENTION_CONFIG, TILES_CONFIG, encode_picture, random_pixels

UNTRUSTED_FETCHER = Fetcher(policy="off", untrusted=True)


def cache_key(source, config=TILES_CONFIG, **image_detail):
    fetcher = UNTRUSTED_FETCHER if isinstance(source, bytes) else Fetcher(policy="off")
    return open_and_preprocess(Picture(source), config, fetcher, ImageDetail(**image_detail)).content_hash


def assert_different_keys(sources, config=TILES_CONFIG):
    """Asserts that all have different hashes, and each the same one every time."""
    keys = [cache_key(source, config) for source in sources]
    assert len(set(keys)) == len(keys)
    assert keys == [cache_key(source, config) for source in sources]


def test_ghsa_c65p_x677_fgj6_equal_bytes_of_other_shapes():
    """Pictures of different shapes whose pixels are the same bytes."""
    pixels = random_pixels(12, 2, 3)
    for shape in ((12, 2, 3), (2, 12, 3), (6, 4, 3), (4, 6, 3), (24, 1, 3), (1, 24, 3)):
        assert pixels.reshape(shape).tobytes() == pixels.tobytes()
    assert_different_keys(
        [
            pixels.reshape(shape)
            for shape in ((12, 2, 3), (2, 12, 3), (6, 4, 3), (4, 6, 3), (24, 1, 3), (1, 24, 3))
        ]
    )


def test_dynamo_8340_shapes_of_even_colour():
    assert_different_keys(
        [np.full(shape, 77, np.uint8) for shape in ((4, 9, 3), (9, 4, 3), (6, 6, 3), (1, 36, 3), (36, 1, 3))]
    )


def test_ghsa_c65p_x677_fgj6_equal_indices_of_other_palettes():
    """Equal palette indices with different palettes are different pictures."""
    indices, files = random_pixels(6, 6, 1) % 4, []
    for palette in ((255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9), (0, 255, 0, 255, 0, 0, 9, 9, 9, 0, 0, 255)):
        image = PIL.Image.fromarray(indices).convert("P")
        image.putdata(indices.flatten().tolist())
        image.putpalette(palette)
        files += [encode_picture(image, "PNG"), image]
    keys = [cache_key(file) for file in files]
    assert PIL.Image.open(io.BytesIO(files[0])).tobytes() == PIL.Image.open(io.BytesIO(files[2])).tobytes()
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_ghsa_c65p_x677_fgj6_equal_indices_of_other_transparency():
    image = PIL.Image.fromarray(random_pixels(6, 6, 1) % 4).convert("P")
    image.putdata((random_pixels(6, 6, 1) % 4).flatten().tolist())
    image.putpalette([10, 20, 30, 90, 80, 70, 5, 5, 5, 200, 0, 0])
    assert_different_keys(
        [encode_picture(image, "PNG", transparency=index) for index in range(3)]
        + [encode_picture(image, "PNG")]
    )


def test_equal_bytes_of_other_modes():
    """The same bytes as one pixel of RGBA, four of gray, one of CMYK."""
    raw = random_pixels(6, 8, 4).tobytes()
    sizes = {"L": (32, 6), "RGBA": (8, 6), "CMYK": (8, 6), "LA": (16, 6)}
    assert_different_keys([PIL.Image.frombytes(mode, size, raw) for mode, size in sizes.items()])


def test_sglang_2151_8342_transposed_and_turned_pictures():
    array = random_pixels(7, 7, 3)
    assert_different_keys(
        [array, array.transpose(1, 0, 2), array[::-1], array[:, ::-1], np.rot90(array), array[:, :, ::-1]]
    )


def test_vllm_mlx_126_pictures_that_begin_alike():
    """A hash over the first thousand bytes, or over every nth pixel, would not see the last one."""
    array = random_pixels(200, 200, 3)
    last, middle, first = array.copy(), array.copy(), array.copy()
    last[-1, -1, 2] ^= 128
    middle[100, 100, 0] ^= 128
    first[0, 0, 0] ^= 128
    assert_different_keys([array, last, middle, first])
    files = [encode_picture(PIL.Image.fromarray(each), "BMP") for each in (array, last, middle, first)]
    assert len({file[:1000] for file in files}) <= 3
    assert_different_keys(files)


def test_lmcache_3301_keys_are_not_cut():
    """Collisions of hashes with 16 or 64 bits can be searched."""
    keys = [cache_key(np.full((2, 2, 3), colour, np.uint8)) for colour in range(64)]
    assert {len(bytes.fromhex(one)) for one in keys} == {32}
    for start in range(0, 64, 8):
        assert len({one[start : start + 8] for one in keys}) == len(keys), (
            "every part of the key depends on the picture"
        )


def test_orientation_is_part_of_what_is_hashed():
    image, exif = PIL.Image.fromarray(random_pixels(5, 5, 3)), PIL.Image.Exif()
    files = []
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        files.append(encode_picture(image, "PNG", exif=exif))
    assert_different_keys(files)
    upright = PIL.Image.open(io.BytesIO(files[5])).transpose(PIL.Image.Transpose.ROTATE_270)
    assert cache_key(files[5]) == cache_key(np.asarray(upright))


def test_configs_and_image_details_have_different_keys():
    array = random_pixels(40, 60, 3)
    configs = [
        TILES_CONFIG,
        CROSS_ATTENTION_CONFIG,
        dataclasses.replace(TILES_CONFIG, do_image_splitting=False),
        dataclasses.replace(TILES_CONFIG, longest_edge=48),
    ]
    configs += [
        dataclasses.replace(TILES_CONFIG, mean=(0.5, 0.5, 0.4)),
        dataclasses.replace(TILES_CONFIG, resample="bicubic"),
    ]
    keys = [cache_key(array, config) for config in configs] + [cache_key(array, max_tiles=2)]
    assert len(set(keys)) == len(keys)
    assert cache_key(array, detail="low") == keys[2], "what is the same frames has the same key"


def test_equal_keys_mean_equal_frames():
    """For every kind of source."""
    array = random_pixels(9, 11, 3)
    image = PIL.Image.fromarray(array)
    forms = [
        array,
        image,
        encode_picture(image, "PNG"),
        encode_picture(image, "BMP"),
        encode_picture(image, "WEBP", lossless=True),
    ]
    tiles = [open_and_preprocess(Picture(form), TILES_CONFIG, Fetcher(), ImageDetail()) for form in forms]
    assert len({one.content_hash for one in tiles}) == 1
    for one in tiles:
        for frame, first in zip(one.frames, tiles[0].frames, strict=True):
            assert np.array_equal(frame, first)


def test_a_file_that_changes_while_it_is_read_does_not_lend_its_key(tmp_path, monkeypatch):
    """A file that is overwritten, as by a camera: the hash is that of the decoded pixels."""
    path = tmp_path / "camera.png"
    one, other = (PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    one.save(path)
    from idefics.processing import image_processor

    decode = image_processor.decode_trusted
    monkeypatch.setattr(
        image_processor, "decode_trusted", lambda *a, **k: (decode(*a, **k), other.save(path))[0]
    )
    assert cache_key(str(path)) == preprocess_image(one, TILES_CONFIG).content_hash


def test_a_pixel_cannot_pose_as_a_size():
    """The hashed bytes begin with the settings; no two pictures give the same bytes."""
    head = b"RGB (7, 1) "
    body = head + bytes(21 - len(head))
    assert_different_keys(
        [np.frombuffer(body, np.uint8).reshape(1, 7, 3), np.frombuffer(body, np.uint8).reshape(7, 1, 3)]
    )


def test_frames_of_a_callers_own_transform_are_known_by_their_shape_too(monkeypatch):
    """In `compat`, where the caller may pass the function that makes frames."""
    from idefics.compat import IdeficsImageProcessor

    processor = IdeficsImageProcessor()
    values = torch.arange(3 * 4 * 4, dtype=torch.float32)
    shapes = [(3, 4, 4), (3, 2, 8), (3, 8, 2), (3, 16, 1)]
    image = PIL.Image.new("RGB", (4, 4))
    keys = [
        processor.preprocess_with_transform(image, lambda _, s=shape: values.reshape(s)).content_hash
        for shape in shapes
    ]
    assert len(set(keys)) == len(keys)


def make_prompt(ids, pictures=(), image_token_positions=(), image_index=None):
    return Prompt(tuple(ids), pictures, image_token_positions, tuple(image_index or [-1] * len(ids)))


def make_tiles(name):
    return PreprocessedImage((), 0, 0, name)


def page_keys(asked, uses_cross_attention=False):
    return PageKeys(asked, uses_cross_attention).full_page_keys(asked.ids, len(asked.ids))


def test_ghsa_rm76_4mrf_v9r8_keys_of_pages():
    """Equal keys of the prefix cache mean equal ids, pictures, positions of feature rows and attended pictures."""
    ids = list(range(2 * PAGE_SIZE))
    plain = page_keys(make_prompt(ids))
    assert {len(one) for one in plain} == {32}, "a whole SHA-256: sixteen bytes can be searched for a pair"
    first = page_keys(make_prompt([99, *ids[1:]]))
    assert not set(plain) & set(first), "what comes after another beginning is another page"
    assert plain[0] != plain[1]
    assert page_keys(make_prompt([*ids[PAGE_SIZE:], *ids[:PAGE_SIZE]]))[1] != plain[0]
    assert page_keys(make_prompt([*ids[:PAGE_SIZE], *ids[:PAGE_SIZE]]))[1] != plain[0], (
        "the same ids at another place"
    )


@pytest.mark.parametrize("uses_cross_attention", [False, True])
def test_ghsa_rm76_4mrf_v9r8_other_pictures_under_the_same_ids(uses_cross_attention):
    ids, places = [7] * PAGE_SIZE, (tuple(range(2, 6)),)
    sees = [-1, -1] + [0] * (PAGE_SIZE - 2)
    found = [
        page_keys(make_prompt(ids, (make_tiles(name),), places, sees), uses_cross_attention)[0]
        for name in ("a", "b", "a:1", "")
    ]
    found.append(page_keys(make_prompt(ids), uses_cross_attention)[0])
    assert len(set(found)) == 5 - uses_cross_attention, (
        "without cross-attention an unnamed picture counts as none"
    )


def test_ghsa_rm76_4mrf_v9r8_other_places_of_the_same_picture():
    ids = [7] * PAGE_SIZE
    found = [
        page_keys(make_prompt(ids, (make_tiles("a"),), (tuple(range(start, start + 4)),)))[0]
        for start in range(0, 12, 3)
    ]
    found.append(page_keys(make_prompt(ids, (make_tiles("a"), make_tiles("a")), ((0, 1), (2, 3))))[0])
    assert len(set(found)) == len(found)


def test_ghsa_rm76_4mrf_v9r8_ids_that_read_alike_when_concatenated():
    """The ids 1, 23 and the ids 12, 3 must differ."""
    found = [
        page_keys(make_prompt([*pair, *[0] * (PAGE_SIZE - 2)]))[0] for pair in ((1, 23), (12, 3), (123, 0))
    ]
    assert len(set(found)) == 3


def test_an_animation_is_known_by_the_frame_that_is_seen():
    def animation(colours):
        frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in colours]
        return encode_picture(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert (
        cache_key(animation(["red", "blue"]))
        == cache_key(animation(["red", "green", "blue"]))
        != cache_key(animation(["blue", "red"]))
    )


def test_a_comment_or_a_text_is_no_part_of_the_picture():
    data = encode_picture(PIL.Image.fromarray(random_pixels(5, 5, 3)), "PNG")
    chunk = b"tEXtComment\0hello"
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert cache_key(data) == cache_key(data[:33] + text + data[33:])
