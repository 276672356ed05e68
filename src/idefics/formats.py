"""The formats of picture and video files: their suffixes, how they are recognised, which of them are read.

The one table for opening files, listing folders, uploads, messages and help. Plain data: no Pillow, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

GENERIC_BRANDS = (b"mif1", b"msf1")  # of ISO base media files: HEIC and AVIF files may both begin with them


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """One format of picture files, or one container format of videos.

    Attributes:
        title: its name in messages.
        suffixes: in lower case, the most common one first.
        signature: regular expression that the beginning of its files matches; empty: none is known.
        brands: those of an ISO base media file (ISO/IEC 14496-12, box `ftyp`) of this format.
        pillow_format: Pillow's name of the decoder; empty: never read.
        extra: the optional dependency (`idefics[extra]`) that reads it; empty: none is needed.
    """

    title: str
    suffixes: tuple[str, ...]
    signature: bytes = b""
    brands: tuple[bytes, ...] = ()
    pillow_format: str = ""
    extra: str = ""


# Read by Pillow, or by a library that makes Pillow's pictures. Pillow also opens page descriptions (EPS) by starting
# other programs, and dozens of rare formats: these are disabled.
UNTRUSTED_IMAGE_FORMATS = (  # also read of untrusted senders; see docs/design.md, "Pictures"
    MediaFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff", pillow_format="JPEG"),
    MediaFormat("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", pillow_format="PNG"),
    MediaFormat("WebP", (".webp",), rb"RIFF.{4}WEBP", pillow_format="WEBP"),
    MediaFormat("GIF", (".gif",), rb"GIF8[79]a", pillow_format="GIF"),
    MediaFormat("BMP", (".bmp",), rb"BM.{4}\0{4}", pillow_format="BMP"),
)
IMAGE_FORMATS = (
    *UNTRUSTED_IMAGE_FORMATS,
    MediaFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", pillow_format="TIFF"),
    MediaFormat("AVIF", (".avif", ".avifs"), brands=(b"avif", b"avis"), pillow_format="AVIF"),
    MediaFormat(
        "HEIC",
        (".heic", ".heif", ".hif", ".heics", ".heifs"),
        brands=(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", *GENERIC_BRANDS),
        pillow_format="HEIF",
        extra="heif",
    ),
    MediaFormat(
        "JPEG 2000",
        (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        pillow_format="JPEG2000",
    ),
    MediaFormat("ICO", (".ico",), rb"\0\0\x01\0", pillow_format="ICO"),
    MediaFormat("PPM", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), rb"P[1-6f]\s", pillow_format="PPM"),
)

# Recognised, so that a message can name them, and never read.
UNREADABLE_IMAGE_FORMATS = (
    MediaFormat(
        "camera RAW",
        (
            *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2"),
            *(".pef", ".srw", ".x3f", ".3fr", ".iiq", ".kdc", ".dcr", ".mrw", ".erf", ".mef", ".rwl", ".raw"),
        ),
        rb"(II\*\0|MM\0\*).{4}CR|FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR|FOVb|\0MRM",
        brands=(b"crx ",),
    ),
    MediaFormat("JPEG XL", (".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    MediaFormat("PSD", (".psd", ".psb"), rb"8BPS"),
    MediaFormat("SVG", (".svg", ".svgz"), rb"\s*(<\?xml[^>]*>\s*)?(<!--.*-->\s*)?<svg\b"),
    MediaFormat("PDF", (".pdf",), rb"%PDF-"),
    MediaFormat("EPS", (".eps", ".ps", ".ai"), rb"%!PS"),
    MediaFormat("TGA", (".tga",)),
    MediaFormat("QOI", (".qoi",), rb"qoif"),
    MediaFormat("OpenEXR", (".exr",), rb"\x76\x2f\x31\x01"),
    MediaFormat("HDR", (".hdr",), rb"#\?RADIANCE"),
    MediaFormat("DDS", (".dds",), rb"DDS "),
    MediaFormat("PCX", (".pcx",)),
    MediaFormat("ICNS", (".icns",), rb"icns"),
    MediaFormat("DICOM", (".dcm",), rb".{128}DICM"),
)


# A file with sound alone has the same signature; it is refused when opened.
# An ISO base media file begins with the box "ftyp" (ISO/IEC 14496-12), an old QuickTime file with another; packets of a
# transport stream have 188 bytes (ISO/IEC 13818-1), or 192 with a time before each.
VIDEO_FORMATS = (
    MediaFormat("MP4 or MOV", (".mp4", ".m4v", ".mov", ".3gp"), rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)"),
    MediaFormat("WebM or MKV", (".webm", ".mkv"), rb"\x1aE\xdf\xa3"),
    MediaFormat("AVI", (".avi",), rb"RIFF.{4}AVI "),
    MediaFormat("MPEG", (".mpg", ".mpeg"), rb"\0\0\x01[\xba\xb3]"),
    MediaFormat("MPEG transport stream", (".mts", ".m2ts"), rb"G.{187}G|.{4}G.{191}G"),
    MediaFormat("Ogg", (".ogv",), rb"OggS\0"),
    MediaFormat("WMV", (".wmv",), rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    MediaFormat("FLV", (".flv",), rb"FLV\x01"),
)
VIDEO_SUFFIXES = tuple(suffix for one in VIDEO_FORMATS for suffix in one.suffixes)
ALL_IMAGE_FORMATS = (*IMAGE_FORMATS, *UNREADABLE_IMAGE_FORMATS)
IMAGE_SUFFIXES = tuple(suffix for one in IMAGE_FORMATS for suffix in one.suffixes)

SIGNATURE_BYTES = 256  # bytes from the beginning of a file that suffice to recognise its format


def image_format_by_suffix(name: str) -> MediaFormat | None:
    """The format of a file by the suffix of its name, or None; it may be one that is never read."""
    dot = name.rfind(".")
    return _IMAGE_FORMAT_BY_SUFFIX.get(name[dot:].lower()) if dot >= 0 else None


_IMAGE_FORMAT_BY_SUFFIX = {suffix: one for one in ALL_IMAGE_FORMATS for suffix in one.suffixes}


def detect_image_format(head: bytes) -> MediaFormat | None:
    """The format of a file by its content, or None; it may be one that is never read.

    Args:
        head: the first `SIGNATURE_BYTES` bytes of the file, or all if it has fewer.
    """
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4]), len(head))
        brands = [head[8:12], *(head[start : start + 4] for start in range(16, size, 4))]
        brands.sort(key=lambda brand: brand in GENERIC_BRANDS)
        return next((one for brand in brands for one in ALL_IMAGE_FORMATS if brand in one.brands), None)
    # Some camera RAW files begin as TIFF does, so these formats go first.
    return _match_signature((*UNREADABLE_IMAGE_FORMATS, *IMAGE_FORMATS), head)


def detect_video_format(head: bytes) -> MediaFormat | None:
    """The format of a video file by its content; None where that is a picture's or unknown.

    Args:
        head: as in `detect_image_format`.
    """
    return _match_signature(VIDEO_FORMATS, head) if detect_image_format(head) is None else None


def _match_signature(formats: Iterable[MediaFormat], head: bytes) -> MediaFormat | None:
    """The first of the formats whose signature the beginning of a file matches, or None."""
    return next((one for one in formats if one.signature and re.match(one.signature, head, re.DOTALL)), None)


def join_titles(formats: Iterable[MediaFormat]) -> str:
    """The formats' titles as a list in a sentence: "JPEG, PNG or GIF"."""
    *first, last = (one.title for one in formats)
    return f"{', '.join(first)} or {last}" if first else last
