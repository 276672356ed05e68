"""Picture files of untrusted senders: bounded work and memory, the right format, and nothing said about this machine.

Tests carry the names of the holes that they keep shut.
"""

import base64
import io
import itertools
import os
import re
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest

import idefics
from idefics import Message
from idefics.errors import BadPicture, BadVideo
from idefics.formats import UNTRUSTED_IMAGE_FORMATS
from idefics.messages import ImageDetail, Picture, Video
from idefics.processing import untrusted
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess, open_picture
from idefics.processing.video_file import open_video
from idefics.server.server_state import with_untrusted_fetcher
from idefics.server.settings import Settings
from processing.pictures_tiny import (
    CROSS_ATTENTION_CONFIG,
    TILES_CONFIG,
    encode_picture,
    encode_with_orientation,
    random_picture,
    random_pixels,
)
from untrusted.crafted_pictures import (
    FILE_CLAIMING_SIZE_BY_FORMAT,
    SAVE_OPTIONS_BY_FORMAT,
    encode_image,
    gif_claiming_size,
    jpeg_with_scans,
    jpeg_with_segments,
    make_exif_bomb,
    png_chunk,
    png_claiming_size,
)
from untrusted.fake_internet import PUBLIC_ADDRESSES

UNTRUSTED_FETCHER = Fetcher(policy="off", untrusted=True)


def open_untrusted(source, fetcher=UNTRUSTED_FETCHER):
    return open_picture(Picture(source), fetcher)


def assert_refused(source, match, fetcher=UNTRUSTED_FETCHER):
    with pytest.raises(BadPicture, match=match) as error:
        open_untrusted(source, fetcher)
    said = str(error.value)
    told = re.sub(r"http://\S+", "", said)  # the sender's own
    assert not re.search(r"0x[0-9a-f]{6,}|BytesIO|/|\n", told), "no address in memory, no path"
    assert error.value.__cause__ is None
    return said


def make_data_uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("format", SAVE_OPTIONS_BY_FORMAT)
def test_the_five_formats_are_read(format):
    for form in (encode_image(format), make_data_uri(encode_image(format))):
        assert open_untrusted(form).size == (37, 23)
        assert np.array_equal(open_untrusted(form), open_untrusted(form, Fetcher()))


OTHER_FORMATS = [
    "TIFF",
    "ICO",
    "JPEG2000",
    "PPM",
    "AVIF",
    "TGA",
    "PCX",
    "EPS",
    "PDF",
    "SGI",
    "DDS",
    "IM",
    "MSP",
    "XBM",
    "ICNS",
]


@pytest.mark.parametrize("format", OTHER_FORMATS)
def test_cve_2026_22778_no_other_decoder_sees_a_file(format, monkeypatch):
    """Rare decoders have vulnerabilities: JPEG2000's allowed code execution. Not even their headers are read."""
    image = random_picture("1") if format in ("MSP", "XBM") else random_picture("RGB", (64, 64))
    data = encode_picture(image, format)
    seen = []
    for name, (_, accept) in list(PIL.Image.OPEN.items()):
        if name not in [one.pillow_format for one in UNTRUSTED_IMAGE_FORMATS]:
            monkeypatch.setitem(PIL.Image.OPEN, name, (lambda *a: seen.append(a), accept))
    for form in (data, make_data_uri(data)):
        assert_refused(form, "is not (a picture that can be )?read( here)?: give JPEG, PNG, WebP, GIF or BMP")
    assert not seen


def test_cve_2026_22778_what_a_plugin_adds_is_not_read(monkeypatch):
    """Any package can register decoders with Pillow."""
    monkeypatch.setitem(PIL.Image.OPEN, "MINE", (lambda *_: pytest.fail("it was opened"), lambda _: True))
    monkeypatch.setattr(PIL.Image, "ID", ["MINE", *PIL.Image.ID])
    assert_refused(b"hello", "is not a picture that can be read")


def test_the_type_that_is_claimed_is_not_believed(fake_internet):
    """The content of a file decides, not its name."""
    data = base64.b64encode(encode_image("GIF")).decode()
    assert open_untrusted(f"data:image/png;base64,{data}").size == (37, 23)
    assert open_untrusted(f"data:text/html;base64,{data}").size == (37, 23)
    fake_internet.public_server.pages |= {
        "/a": lambda page: page.send_answer(200, encode_image("BMP"), **{"Content-Type": "text/html"}),
        "/b": lambda page: page.send_answer(200, b"<html>", **{"Content-Type": "image/png"}),
        "/c": lambda page: page.send_answer(
            200, encode_picture(random_picture("RGB"), "TIFF"), **{"Content-Type": "image/png"}
        ),
    }
    for fetcher in (Fetcher(policy="public"), Fetcher(policy="public", untrusted=True)):
        assert open_untrusted("http://photos.example.com/a", fetcher).size == (37, 23)
        for page in ("b", "c"):
            with pytest.raises(BadPicture, match="give JPEG, PNG, WebP, GIF or BMP"):
                open_untrusted(f"http://photos.example.com/{page}", fetcher)
    assert {address for address, _ in fake_internet.connected_addresses} == {PUBLIC_ADDRESSES[0]}


def test_files_of_the_owner_are_not_restricted(tmp_path, fake_internet):
    """The owner's own TIFF is read by path and as bytes under every policy, and by URL under `any`."""
    path = tmp_path / "photo.tif"
    path.write_bytes(encode_picture(random_picture("RGB"), "TIFF"))
    for policy in ("any", "public", "off"):
        for source in (path, str(path), path.read_bytes()):
            assert open_untrusted(source, Fetcher(policy=policy)).size == (37, 23)
    fake_internet.public_server.pages["/photo.tif"] = path.read_bytes()
    assert open_untrusted("http://photos.example.com/photo.tif", Fetcher()).size == (37, 23)
    assert open_untrusted(make_data_uri(path.read_bytes()), Fetcher()).size == (37, 23)


def test_no_file_of_this_machine_is_opened(tmp_path, monkeypatch):
    """Paths are not checked: the message is the same for files that exist and that do not."""
    path = tmp_path / "photo.png"
    path.write_bytes(encode_image("PNG"))
    monkeypatch.chdir(tmp_path)
    said = {
        assert_refused(source, "cannot be a path here")
        for source in (path, str(path), "photo.png", "none.png", "")
    }
    said |= {
        assert_refused(f"file://{path}", "cannot be a path here"),
        assert_refused("file:photo.png", "cannot be a path here"),
    }
    assert len(said) == 1
    for source in (path, str(path), b"a video"):
        with (
            pytest.raises(BadVideo, match="video files of untrusted senders are not read"),
            open_video(source, UNTRUSTED_FETCHER),
        ):
            pass


def test_words_that_look_like_a_file_or_an_address_are_words(vlm, tmp_path, fake_internet):
    """In a raw prompt of the owner such a text is a picture; of an untrusted sender it stays text."""
    path = tmp_path / "photo.png"
    path.write_bytes(encode_image("PNG"))
    theirs = with_untrusted_fetcher(vlm, Settings(model="demo", remote_images="public"))
    for words in (
        str(path),
        "http://photos.example.com/cat.png",
        make_data_uri(encode_image("PNG", (1, 1))),
        "none.png",
    ):
        assert not theirs.prompt([words]).pictures
        assert not theirs.prompt([Message("user", (words,))]).pictures
    assert len(vlm.prompt([str(path)]).pictures) == 1
    assert fake_internet.resolved_hosts == []
    with pytest.raises(BadPicture, match="cannot be a path here"):
        theirs.prompt([{"role": "user", "content": [{"type": "image", "image": str(path)}]}])


MAX_SIDE_BY_FORMAT = {
    "JPEG": 65_535,
    "PNG": 1 << 31,
    "WEBP": 16_384,
    "GIF": 65_535,
    "BMP": 1 << 31,
}  # the longest of each format
TOO_LARGE_SIZES = [(8000, 5001), (5001, 8000), (1, 40_000_001), (65_535, 65_535)]


@pytest.mark.parametrize(
    ("format", "size"),
    [
        (format, size)
        for format in FILE_CLAIMING_SIZE_BY_FORMAT
        for size in TOO_LARGE_SIZES
        if max(size) <= MAX_SIDE_BY_FORMAT[format]
    ],
)
def test_vllm_47010_a_picture_of_too_many_pixels(format, size, monkeypatch):
    """By its header, before decoding. A header at the limit itself passes."""
    data = FILE_CLAIMING_SIZE_BY_FORMAT[format](*size)
    assert len(data) < 1000
    loads = []

    def load(image):
        loads.append(image.size)
        raise OSError

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", load)
    assert_refused(data, r"at most 40,000,000 are read|more than 40,000,000 pixels")
    assert not loads
    assert_refused(FILE_CLAIMING_SIZE_BY_FORMAT[format](8000, 5000), "is broken")
    assert loads == [(8000, 5000)]


def test_vllm_47010_a_frame_larger_than_its_screen():
    assert_refused(
        gif_claiming_size(8, 8, frame=(0, 0, 65_535, 65_535)),
        "more than 40,000,000 pixels|at most 40,000,000",
    )
    assert_refused(gif_claiming_size(8, 8, frame=(7990, 5000, 10, 10)), "at most 40,000,000")


@pytest.mark.parametrize("policy", ["public", "photos.example.com"])
def test_vllm_omni_6963_every_way_in_has_the_limit(policy, fake_internet):
    """For bytes, data URIs, URLs and objects; in a prompt and in `count_image_tokens`."""
    bomb, fetcher = png_claiming_size(8000, 5001), Fetcher(policy=policy, untrusted=True)
    fake_internet.public_server.pages["/bomb.png"] = bomb
    large = np.broadcast_to(np.uint8(0), (5001, 8000, 3))
    for source in (bomb, make_data_uri(bomb), "http://photos.example.com/bomb.png", large):
        assert_refused(source, "40,000,000", fetcher)
        with pytest.raises(BadPicture, match="40,000,000"):
            open_and_preprocess(Picture(source), CROSS_ATTENTION_CONFIG, fetcher, ImageDetail())
    with pytest.raises(BadPicture, match="40,000,000"):  # the limit for untrusted senders
        open_untrusted("http://photos.example.com/bomb.png", Fetcher(policy=policy))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 4), (2, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_cve_2026_22773_the_smallest_pictures(size, mode):
    """An array (1, 1, 3) was once read as three rows: the channel axis must not be guessed."""
    image = PIL.Image.fromarray(random_pixels(size[1], size[0], 3)).convert(mode)
    for source in (encode_picture(image, "PNG"), image, np.asarray(image.convert("RGB"))):
        assert open_untrusted(source).size == size
        for config in (TILES_CONFIG, CROSS_ATTENTION_CONFIG):
            tiles = open_and_preprocess(Picture(source), config, UNTRUSTED_FETCHER, ImageDetail())
            assert {frame.shape for frame in tiles.frames} == {(3, config.frame_size, config.frame_size)}


def test_cve_2026_22773_the_smallest_pictures_are_answered(vlm):
    for source in (encode_image("PNG", (1, 1)), np.zeros((1, 1, 3), np.uint8), np.zeros((1, 3), np.uint8)):
        assert vlm.ask(source, "What is this?", max_new_tokens=1).usage.pictures == 1


BROKEN_FILES = [
    b"",
    b"hello",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"\xff\xd8",
]


@pytest.mark.parametrize("data", BROKEN_FILES)
def test_cve_2026_22778_no_address_in_an_error(data):
    """Pillow's own message has the address of the file's object in memory."""
    for form in (data, make_data_uri(data)):
        assert_refused(
            form, "is not a picture that can be read|is broken" if data else r"is empty \(0 bytes\)"
        )


@pytest.mark.parametrize(
    "error", [OSError, ValueError, SyntaxError, MemoryError, RuntimeError, KeyError, RecursionError]
)
@pytest.mark.parametrize("step", ["_open", "load", "convert"])
def test_cve_2026_22778_what_a_decoder_says_is_not_passed_on(error, step, monkeypatch):
    def fails(*_, **__):
        raise error(f"{object()!r} at /etc/passwd\nsecret")

    owner = {
        "_open": PIL.PngImagePlugin.PngImageFile,
        "load": PIL.ImageFile.ImageFile,
        "convert": PIL.Image.Image,
    }
    monkeypatch.setattr(owner[step], step, fails)
    data = encode_picture(random_picture("L"), "PNG") if step != "convert" else GREY_PNG
    assert "secret" not in assert_refused(data, "is not a picture that can be read|is broken")


GREY_PNG = encode_picture(random_picture("L"), "PNG")


@pytest.mark.parametrize("format", SAVE_OPTIONS_BY_FORMAT)
def test_a_file_that_is_cut_short_is_an_error_or_whole(format):
    """Wherever the file is cut, never a picture with a part missing."""
    data = encode_image(format, (60, 50))
    whole = np.asarray(open_untrusted(data))
    errors = 0
    for end in range(1, len(data), max(1, len(data) // 97)):
        try:
            image = open_untrusted(data[:end])
        except BadPicture as error:
            errors += 1
            assert "be read" in str(error)  # noqa: PT017
        else:
            assert np.array_equal(image, whole), f"cut after {end} of {len(data)} bytes"
    assert errors > 90


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_untrusted_pictures_are_rotated_upright_too(orientation, format):
    """Read by this package; Pillow's EXIF reader is not used."""
    data = encode_with_orientation(orientation, format)
    assert np.array_equal(open_untrusted(data), open_untrusted(data, Fetcher()))


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_in_either_order_of_bytes(order):
    exif = PIL.Image.Exif()
    exif.endian, exif[0x0112], exif[0x010F] = order, 6, "a camera"
    assert untrusted.read_exif_orientation(exif.tobytes()) == 6
    assert untrusted.read_exif_orientation(exif.tobytes()[: len(exif.tobytes()) // 2]) in (1, 6)


BROKEN_EXIF = [
    b"",
    b"Exif\0\0",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
    b"II*\0\x08\0\0\0\0\0",
    b"garbage",
]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_a_tag_that_means_nothing(exif):
    assert untrusted.read_exif_orientation(exif) == 1
    assert open_untrusted(jpeg_with_segments(encode_image("JPEG"), [b"Exif\0\0" + exif])).size == (37, 23)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}]
)
def test_a_bare_jpeg_has_the_same_pixels(mode, options):
    """Removed metadata does not affect the pixels; segments that define the colours are kept."""
    image = random_picture(mode, (100, 70))
    data = encode_picture(image, "JPEG", comment=b"hello", icc_profile=b"x" * 70_000, dpi=(72, 72), **options)
    bare, exif = untrusted.strip_jpeg_metadata(
        data + b"a film that a telephone puts behind its picture \xff\xda" * 200
    )
    assert exif == b""
    assert len(bare) < len(data) - 70_000
    assert np.array_equal(PIL.Image.open(io.BytesIO(bare)), PIL.Image.open(io.BytesIO(data)))
    assert np.array_equal(open_untrusted(data), open_untrusted(data, Fetcher()))


def peak_python_bytes(work):
    """The peak memory of Python's objects in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_exif_whose_entries_all_hold_the_same_megabyte():
    """Pillow reads all EXIF entries when it opens a JPEG: this file would take 800 MB, one of 20 MB a terabyte."""
    bomb = make_exif_bomb(400_000, 2000)
    parts = [b"Exif\0\0" + bomb[start : start + 65_000] for start in range(0, len(bomb), 65_000)]
    plain = encode_image("JPEG")
    without_density = plain[:2] + plain[plain.index(b"\xff\xdb") :]
    for data in (
        jpeg_with_segments(without_density, parts),
        encode_image("PNG")[:33] + png_chunk(b"eXIf", bomb) + encode_image("PNG")[33:],
    ):
        assert peak_python_bytes(lambda data=data: open_untrusted(data)) < 10_000_000


def test_exif_that_hides_in_an_unknown_segment():
    """Pillow does not know the length of such a segment and parses its content; it is refused, as libjpeg does."""
    inner = b"\xff\xe1" + (8 + len(b"MM")).to_bytes(2) + b"Exif\0\0MM"
    for kind in (0x02, 0xBF, 0xC8, 0xDE, 0xDF, 0xF0, 0xF7, 0xFD):
        assert_refused(
            jpeg_with_segments(encode_image("JPEG"), [inner], kind), "more work than a picture takes"
        )


def test_thousands_of_scans():
    """Each scan of 65 bytes processes all pixels: a JPEG of 20 MB would take an hour. Real ones have about ten."""
    assert open_untrusted(jpeg_with_scans((64, 64), 90)).size == (64, 64)
    assert_refused(jpeg_with_scans((64, 64), 100), "more work than a picture takes")


def jpeg_with_many_segments(many):
    return jpeg_with_segments(encode_image("JPEG"), [b"x"] * many, 0xFE)


def jpeg_with_many_exif_segments(many):
    return jpeg_with_segments(encode_image("JPEG"), [b"Exif\0\0x"] * many)


def png_with_many_chunks(many):
    data = encode_image("PNG")
    return data[:33] + png_chunk(b"abCd", b"") * many + data[33:]


def gif_with_many_comments(many):
    data = encode_image("GIF")
    head = 13 + 3 * (2 << (data[10] & 7))
    return data[:head] + (b"!\xfe\x01x\0") * many + data[head:]


@pytest.mark.parametrize(
    "made",
    [jpeg_with_many_segments, jpeg_with_many_exif_segments, png_with_many_chunks, gif_with_many_comments],
)
def test_a_file_that_is_read_in_tiny_parts(made):
    """Some decoders append each chunk to what they have read, in quadratic time."""
    assert open_untrusted(made(1000)).size == (37, 23)
    reads = []
    monkey = untrusted.ReadLimitedFile.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrusted.ReadLimitedFile, "read", lambda *a: reads.append(0) or monkey(*a))
        assert_refused(made(50_000), "more work than a picture takes")
    assert len(reads) <= untrusted.MAX_READS + 1


def test_a_large_png_in_ordinary_parts_is_read():
    """20 MB in chunks of 8 kB, as libpng writes them, stay within the limit."""
    packed = zlib.compress(random_pixels(1500, 4 * 1100, 1).tobytes(), 0)
    whole = png_claiming_size(1, 1)
    parts = b"".join(
        png_chunk(b"IDAT", packed[start : start + 2048]) for start in range(0, len(packed), 2048)
    )
    rows = 1500 * (4 * 1100) // (3 * 1000 + 1)
    head = whole[:8] + png_claiming_size(1000, rows)[8:33]
    body = bytes((0,) + (0,) * 3000) * rows
    packed = zlib.compress(body, 0)
    parts = b"".join(
        png_chunk(b"IDAT", packed[start : start + 2048]) for start in range(0, len(packed), 2048)
    )
    assert 3 * (len(packed) // 2048) < untrusted.MAX_READS
    assert open_untrusted(head + parts + png_chunk(b"IEND", b"")).size == (1000, rows)


def test_compressed_text_that_becomes_large():
    """A PNG's compressed text, colour profile: Pillow's own limits hold, and the error is ours."""
    packed = zlib.compress(bytes(80_000_000), 9)
    data = encode_image("PNG")
    for name, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        bomb = data[:33] + png_chunk(name, head + packed) + data[33:]

        def work(bomb=bomb):
            try:
                assert open_untrusted(bomb).size == (37, 23)
            except BadPicture as error:
                assert "be read" in str(error)  # noqa: PT017

        assert peak_python_bytes(work) < 10_000_000


def test_an_animation_costs_its_first_frame():
    """Of a thousand frames only the first is decoded."""
    frames = [PIL.Image.new("L", (64, 64), n % 256) for n in range(200)]
    data = encode_picture(
        frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False, disposal=1
    )
    loads, load_prepare = [], PIL.ImageFile.ImageFile.load_prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.ImageFile.ImageFile, "load_prepare", lambda im: loads.append(0) or load_prepare(im))
        assert np.asarray(open_untrusted(data)).max() == 0
    assert len(loads) <= 1


def test_wide_grey_takes_no_more_memory_than_a_picture():
    """A few kilobytes of 16-bit pixels: integer arithmetic on the whole picture at once took a gigabyte."""
    rows = zlib.compress(bytes((1 + 2 * 2000) * 2000))
    data = png_claiming_size(2000, 2000, depth=16, colour=0, rows=rows)
    assert len(data) < 10_000
    assert peak_python_bytes(lambda: open_untrusted(data)) < 5 * 2000 * 2000


def test_concurrent_decoding_is_bounded(fake_internet, monkeypatch):
    """A semaphore bounds decoding; fetching from a slow host holds none of its slots."""
    inside, most, go = [0], [0], threading.Event()
    decode = PIL.Image.open
    lock = threading.Lock()

    def counted(*args, **kwargs):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            return decode(*args, **kwargs)
        finally:
            go.wait(0.02)
            with lock:
                inside[0] -= 1

    monkeypatch.setattr("idefics.processing.warning_filters.WARNING_FILTERS_LOCK", threading.Semaphore(99))
    monkeypatch.setattr(PIL.Image, "open", counted)
    waiting = threading.Event()
    fake_internet.public_server.pages["/slow"] = lambda page: (
        waiting.set(),
        go.wait(10),
        page.send_answer(200, encode_image("PNG")),
    )
    fetcher = Fetcher(policy="public", untrusted=True, decode_slots=threading.BoundedSemaphore(2))
    slow = [
        threading.Thread(target=open_untrusted, args=("http://photos.example.com/slow", fetcher))
        for _ in range(3)
    ]
    quick = [threading.Thread(target=open_untrusted, args=(encode_image("PNG"), fetcher)) for _ in range(8)]
    for thread in slow:
        thread.start()
    assert waiting.wait(10)
    for thread in quick:
        thread.start()
    for thread in quick:
        thread.join(10)
    assert not any(thread.is_alive() for thread in quick), "hosts keep no one from decoding"
    assert most[0] == 2
    go.set()
    for thread in slow:
        thread.join(10)
    assert most[0] == 2


def test_preprocessing_holds_a_decode_slot_too():
    held = []

    class Turns:
        def __enter__(self):
            held.append("in")

        def __exit__(self, *_):
            held.append("out")

    fetcher = Fetcher(policy="off", untrusted=True, decode_slots=Turns())
    open_and_preprocess(Picture(encode_image("PNG")), TILES_CONFIG, fetcher, ImageDetail())
    with pytest.raises(BadPicture):
        open_and_preprocess(Picture(b"hello"), TILES_CONFIG, fetcher, ImageDetail())
    assert held == ["in", "out"] * 2


def process_bytes(data):
    """Peak bytes of a new process that opens a picture, as Python does not count Pillow's memory."""
    code = r"""
import re, sys
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
def opened(data):
    open_picture(Picture(data), Fetcher(untrusted=True))
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
small = opened(bytes.fromhex(sys.argv[1]))
print((opened(sys.stdin.buffer.read()) - small) * 1024)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(idefics.__file__).parents[1])}
    command = [sys.executable, "-c", code, png_claiming_size(1, 1, rows=zlib.compress(bytes(4))).hex()]
    return int(subprocess.run(command, input=data, capture_output=True, check=True, env=environment).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(("depth", "colour", "bytes_"), [(8, 6, 4), (16, 6, 8), (16, 0, 2), (8, 2, 3)])
def test_memory_of_a_picture_is_bounded(depth, colour, bytes_):
    """4 million pixels in a few kilobytes take the memory of the decoded and the RGB picture, and little more."""
    side = 2000
    data = png_claiming_size(
        side, side, depth=depth, colour=colour, rows=zlib.compress(bytes((1 + bytes_ * side) * side))
    )
    assert len(data) < 50_000
    taken = process_bytes(data) / side**2
    assert taken < 14


def test_videos_of_frames_are_pictures(vlm):
    """Each frame is opened under the limits for pictures of untrusted senders."""
    theirs = with_untrusted_fetcher(vlm, Settings(model="demo"))
    with pytest.raises(BadPicture):
        theirs.prompt(
            [Message("user", (Video([encode_picture(random_picture("RGB"), "TIFF")]), "What happens?"))]
        )


def test_every_pair_of_formats_joined():
    """Joined files of two formats: a picture of one of the five allowed formats, or an error."""
    files = [encode_image(format) for format in SAVE_OPTIONS_BY_FORMAT] + [
        encode_picture(random_picture("RGB"), "TIFF")
    ]
    for one, other in itertools.permutations(files, 2):
        for data in (one + other, one[: len(one) // 2] + other):
            try:
                assert open_untrusted(data).size == (37, 23)
            except BadPicture as error:
                assert re.search("be read|more work|not read here: give", str(error))  # noqa: PT017


def test_no_text_of_an_untrusted_sender_names_a_file(vlm, tmp_path, monkeypatch):
    """Paths stay text, neither opened nor refused, so that nobody learns whether a file exists."""
    monkeypatch.chdir(tmp_path)
    for name in ("tower.png", "secret", "notes.txt"):
        Path(name).write_bytes(encode_image("PNG"))
    served = with_untrusted_fetcher(vlm, Settings())
    monkeypatch.setattr(Path, "is_file", lambda self: pytest.fail("it was looked up"))
    for name in (
        "tower.png",
        "secret",
        "notes.txt",
        "gone.png",
        base64.b64encode(encode_image("PNG", (1, 1))).decode(),
    ):
        part = {"type": "text", "text": name}
        for prompt in (
            [Message("user", (name, "What?"))],
            [{"role": "user", "content": [name, part]}],
            [name, "What?"],
        ):
            assert served.prompt(prompt).pictures == ()
    with pytest.raises(BadPicture, match="a picture cannot be a path here"):
        served.prompt([Message("user", (Path("tower.png"), "What?"))])


def test_heic_of_an_untrusted_sender_reaches_no_decoder(monkeypatch):
    """Even where pillow_heif is installed: it only decodes files of the owner."""
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(random_picture("RGB")).save(file)
    assert open_untrusted(file.getvalue(), Fetcher()).size == (37, 23)
    monkeypatch.setattr(heif.HeifImageFile, "__init__", lambda *_: pytest.fail("it was opened"))
    for form in (file.getvalue(), make_data_uri(file.getvalue())):
        assert_refused(form, "is HEIC, which is not read here: give JPEG, PNG, WebP, GIF or BMP")


@pytest.mark.parametrize("length", [0, 1])
def test_a_segment_that_ends_before_it_begins(length):
    """The length of a segment includes its own two bytes."""
    data = b"\xff\xd8\xff\xe0" + length.to_bytes(2) + bytes(20)
    with pytest.raises(BadPicture, match="more work than a picture takes"):
        untrusted.strip_jpeg_metadata(data)
    untrusted.strip_jpeg_metadata(b"\xff\xd8\xff\xe0" + (2).to_bytes(2) + bytes(20))
