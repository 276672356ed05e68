"""TIFF files, which the browser does not show, are decoded by the page: pixel by pixel as Pillow does."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from page.browser import BROWSER_MARKS

pytestmark = BROWSER_MARKS
ORIENTATION_TAG, ROWS_PER_STRIP_TAG = 274, 278
DECODE = """async (base64) => {
    const {decodeTiff} = await import("/ui/tiff.js");
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    let image;
    try {
        image = await decodeTiff(bytes.buffer, "scan.tif");
    } catch (error) {
        return error.message;
    }
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
    context.drawImage(image, 0, 0);
    const {data, width, height} = context.getImageData(0, 0, image.width, image.height);
    return {width, height, pixels: [...data]};
}"""
CASES = [
    ("RGB", {}),
    ("RGB", {"compression": "tiff_lzw", "tiffinfo": {317: 2, ROWS_PER_STRIP_TAG: 7}}),
    ("RGB", {"compression": "tiff_adobe_deflate"}),
    ("RGB", {"compression": "packbits", "big_endian": True}),
    ("L", {"compression": "tiff_lzw"}),
    ("1", {}),
    ("P", {"compression": "tiff_deflate"}),
    ("I;16", {}),
    ("RGBA", {}),
]


def drawn_picture():
    """A picture with noise, in which the table of LZW is full several times, and with areas of one colour."""
    pixels = np.random.default_rng(7).integers(0, 256, (61, 83, 3), np.uint8)
    pixels[10:40, 20:70] = [200, 30, 90]
    return PIL.Image.fromarray(pixels)


def decode(page, image, **options):
    """What the page makes of a picture that Pillow saves."""
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    found = page.evaluate(DECODE, base64.b64encode(file.getvalue()).decode())
    if isinstance(found, str):
        return found
    return np.array(found["pixels"], np.uint8).reshape(found["height"], found["width"], 4)[..., :3]


@pytest.fixture(scope="module")
def page(web_browser, web_url):
    page = web_browser.new_page()
    page.goto(web_url)
    yield page
    page.close()


@pytest.mark.parametrize(
    ("mode", "options"), CASES, ids=[f"{mode}-{index}" for index, (mode, _) in enumerate(CASES)]
)
def test_a_tiff_is_decoded_as_by_pillow(page, mode, options):
    picture = drawn_picture()
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        image, wanted = PIL.Image.fromarray(grey), np.repeat((grey >> 8)[..., None], 3, axis=2)
    else:
        image = picture.convert(mode)
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(page, image, **options), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright(page, orientation):
    file = io.BytesIO()
    drawn_picture().save(file, "TIFF", tiffinfo={ORIENTATION_TAG: orientation})
    with PIL.Image.open(file) as image:
        wanted = np.asarray(image)  # Pillow turns it
    assert np.array_equal(decode(page, drawn_picture(), tiffinfo={ORIENTATION_TAG: orientation}), wanted)


def test_what_is_not_read_is_named(page):
    said = decode(page, drawn_picture().convert("1"), compression="group4")
    assert said == (
        "scan.tif is a TIFF compressed as CCITT (fax), which is not read here: save it as PNG or JPEG and add that."
    )
    preview = decode(page, drawn_picture(), tiffinfo={254: 1})
    assert "begins with a preview, as camera RAW files do" in preview
