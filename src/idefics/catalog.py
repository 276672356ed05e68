"""The checkpoints that have a short name, as plain data. All others are loaded by hub id or folder.

Sources of parameter counts, licences and ids: the checkpoints' own cards and files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from idefics.host_memory import estimate_peak_bytes

Precision = Literal["float32", "bfloat16", "int8", "int4"]
# Bits of a number: in the matrices of the decoder's layers, in other matrices that are quantised, and in the rest.
# int4 has a 16-bit scale for every 32 numbers; the scales of int8, one for each output, are too few to count.
BITS_PER_WEIGHT: dict[Precision, tuple[float, float, float]] = {
    "float32": (32, 32, 32),
    "bfloat16": (16, 16, 16),
    "int8": (8, 8, 16),
    "int4": (4 + 16 / 32, 8, 16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One checkpoint of the catalog.

    Attributes:
        short_names: the names that `load` accepts; the first one is shown in lists.
        hub_id: id on the Hugging Face hub; "" for a checkpoint inside the package.
        package_folder: folder inside the package; "" for a checkpoint on the hub.
        family: name of the family, for people.
        model_type: of config.json.
        num_parameters: number of parameters of the whole model.
        decoder_parameters: those in matrices of the decoder's layers, cross-attention included, which int8 and int4
            quantise to that number of bits.
        int8_parameters: those in matrices of the vision tower and in a head of one matrix, which int8 and int4 quantise
            to 8 bits. Connector, embeddings and norms are not quantised.
        tied_head_parameters: those of `int8_parameters` in a head that is tied to the embedding: quantised, the head is
            stored in addition to the embedding.
        kv_numbers_per_token: numbers in the keys and values of one token, over all layers.
        max_positions: the longest prompt and its answer, in tokens.
        licence: of the weights.
        kind: "base" continues documents, "instruct" follows a request, "chat" is tuned for long dialogue.
        note: what to know before choosing it, in one sentence; "" where there is nothing.
        is_video_trained: whether it was trained with video.
    """

    short_names: tuple[str, ...]
    hub_id: str = ""
    package_folder: str = ""
    family: str
    model_type: str
    num_parameters: int
    decoder_parameters: int
    int8_parameters: int
    kv_numbers_per_token: int
    max_positions: int
    licence: str = "Apache-2.0"
    kind: Literal["base", "instruct", "chat"] = "instruct"
    note: str = ""
    is_video_trained: bool = False
    tied_head_parameters: int = 0

    @property
    def name(self) -> str:
        """The short name that is shown."""
        return self.short_names[0]


_SMOLVLM_256M = CatalogEntry(
    short_names=("smolvlm-256m",),
    hub_id="HuggingFaceTB/SmolVLM-256M-Instruct",
    family="SmolVLM",
    model_type="idefics3",
    num_parameters=256_484_928,
    decoder_parameters=106_168_320,
    int8_parameters=113_319_936,
    kv_numbers_per_token=11_520,
    max_positions=8_192,
    note="The smallest for real photographs.",
)
_SMOLVLM_500M = replace(
    _SMOLVLM_256M,
    short_names=("smolvlm-500m",),
    hub_id="HuggingFaceTB/SmolVLM-500M-Instruct",
    num_parameters=507_482_304,
    decoder_parameters=314_572_800,
    int8_parameters=132_243_456,
    kv_numbers_per_token=20_480,
    note="The default: good answers on a laptop's CPU.",
)
_SMOLVLM_2_2B = replace(
    _SMOLVLM_256M,
    short_names=("smolvlm-2.2b",),
    hub_id="HuggingFaceTB/SmolVLM-Instruct",
    num_parameters=2_246_272_880,
    decoder_parameters=1_610_612_736,
    int8_parameters=511_739_904,
    kv_numbers_per_token=98_304,
    max_positions=16_384,
    note="",
)
_IDEFICS2_8B = CatalogEntry(
    short_names=("idefics2-8b",),
    hub_id="HuggingFaceM4/idefics2-8b",
    family="Idefics2",
    model_type="idefics2",
    num_parameters=8_402_768_112,
    decoder_parameters=6_979_321_856,
    int8_parameters=542_154_752,
    kv_numbers_per_token=65_536,
    max_positions=32_768,
)
_IDEFICS_9B = CatalogEntry(
    short_names=("9b", "idefics-9b"),
    hub_id="HuggingFaceM4/idefics-9b",
    family="Idefics",
    model_type="idefics",
    num_parameters=8_929_679_632,
    decoder_parameters=7_910_457_344,
    int8_parameters=629_145_600,
    kv_numbers_per_token=262_144,
    max_positions=2_048,
    licence="LLaMA 1 (non-commercial)",
    kind="base",
    note="Learns a task from a few interleaved examples.",
)
_IDEFICS_80B = replace(
    _IDEFICS_9B,
    short_names=("80b", "idefics-80b"),
    hub_id="HuggingFaceM4/idefics-80b",
    num_parameters=79_967_843_624,
    decoder_parameters=78_685_143_040,
    kv_numbers_per_token=1_310_720,
    note="",
)

_DEMO = CatalogEntry(
    short_names=("demo",),
    package_folder="demo/idefics3",
    family="Idefics3",
    model_type="idefics3",
    num_parameters=3_493_440,
    decoder_parameters=1_587_200,
    int8_parameters=1_344_640,
    kv_numbers_per_token=1_600,
    max_positions=1_024,
    note="Inside the package, needs no network; knows nothing but its picture book.",
)

CATALOG: tuple[CatalogEntry, ...] = (
    _DEMO,
    replace(
        _DEMO,
        short_names=("demo-idefics1",),
        package_folder="demo/idefics1",
        family="Idefics",
        model_type="idefics",
        num_parameters=4_741_352,
        decoder_parameters=2_539_520,
        int8_parameters=1_024_000,
        kv_numbers_per_token=1_280,
    ),
    _SMOLVLM_256M,
    _SMOLVLM_500M,
    _SMOLVLM_2_2B,
    replace(
        _SMOLVLM_256M,
        short_names=("smolvlm2-256m",),
        hub_id="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        is_video_trained=True,
        note="",
    ),
    replace(
        _SMOLVLM_500M,
        short_names=("smolvlm2-500m",),
        hub_id="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        is_video_trained=True,
        note="",
    ),
    replace(
        _SMOLVLM_2_2B,
        short_names=("smolvlm2-2.2b",),
        hub_id="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        num_parameters=2_246_784_880,
        int8_parameters=511_995_904,
        max_positions=8_192,
        is_video_trained=True,
    ),
    replace(
        _SMOLVLM_256M,
        short_names=("smoldocling-256m",),
        hub_id="docling-project/SmolDocling-256M-preview",
        family="SmolDocling",
        licence="CDLA-Permissive-2.0",
        note='Writes pages down as DocTags: "Convert this page to docling."',
    ),
    replace(
        _SMOLVLM_256M,
        short_names=("granite-docling-258m",),
        hub_id="ibm-granite/granite-docling-258M",
        family="Granite Docling",
        num_parameters=257_517_120,
        int8_parameters=142_737_408,
        tied_head_parameters=57_802_752,
        note="Successor of SmolDocling.",
    ),
    CatalogEntry(
        short_names=("idefics3-8b",),
        hub_id="HuggingFaceM4/Idefics3-8B-Llama3",
        family="Idefics3",
        model_type="idefics3",
        num_parameters=8_462_086_384,
        decoder_parameters=6_979_321_856,
        int8_parameters=936_419_328,
        kv_numbers_per_token=65_536,
        max_positions=131_072,
        note="Strong at documents, charts and text in pictures.",
    ),
    _IDEFICS2_8B,
    replace(
        _IDEFICS2_8B,
        short_names=("idefics2-8b-base",),
        hub_id="HuggingFaceM4/idefics2-8b-base",
        num_parameters=8_402_759_920,
        int8_parameters=542_150_656,
        kind="base",
    ),
    replace(
        _IDEFICS2_8B,
        short_names=("idefics2-8b-chatty",),
        hub_id="HuggingFaceM4/idefics2-8b-chatty",
        kind="chat",
    ),
    _IDEFICS_9B,
    replace(
        _IDEFICS_9B,
        short_names=("9b-instruct", "idefics-9b-instruct"),
        hub_id="HuggingFaceM4/idefics-9b-instruct",
        num_parameters=8_929_687_824,
        kind="instruct",
        note="",
    ),
    _IDEFICS_80B,
    replace(
        _IDEFICS_80B,
        short_names=("80b-instruct", "idefics-80b-instruct"),
        hub_id="HuggingFaceM4/idefics-80b-instruct",
        num_parameters=79_967_860_008,
        kind="instruct",
    ),
)

DEFAULT_MODEL = "smolvlm-500m"
DOCTAGS_MODELS = (
    "granite-docling-258m",
    "smoldocling-256m",
)  # which `idefics read` needs; the first is its default

_ENTRY_BY_NAME = {name: entry for entry in CATALOG for name in entry.short_names}


def find_entry(name: str) -> CatalogEntry | None:
    """The entry with this short name, in upper or lower case; None where there is none."""
    return _ENTRY_BY_NAME.get(name.lower())


def all_short_names() -> tuple[str, ...]:
    """Every short name, in the order of the catalog."""
    return tuple(_ENTRY_BY_NAME)


def checkpoint_weight_bytes(entry: CatalogEntry, precision: Precision) -> int:
    """Bytes of the weights alone: each parameter times its bits in `BITS_PER_WEIGHT`.

    A tied head is counted a second time where it is quantised, as the embedding is kept too.
    """
    decoder_bits, int8_part_bits, other_bits = BITS_PER_WEIGHT[precision]
    other_parameters = entry.num_parameters - entry.decoder_parameters - entry.int8_parameters
    if int8_part_bits != other_bits:
        other_parameters += entry.tied_head_parameters
    return round(
        (
            entry.decoder_parameters * decoder_bits
            + entry.int8_parameters * int8_part_bits
            + other_parameters * other_bits
        )
        / 8
    )


def checkpoint_peak_bytes(entry: CatalogEntry, precision: Precision) -> int:
    """Estimates the peak memory, in bytes, of a process that answers one prompt after another on a CPU.

    In addition to the weights: keys and values (float16 with quantised weights, else float32), encoded images, and what
    Python, torch and a step take.
    """
    bytes_per_number = 2 if precision in ("int8", "int4") else 4
    return estimate_peak_bytes(
        checkpoint_weight_bytes(entry, precision),
        bytes_per_number * entry.kv_numbers_per_token,
        entry.max_positions,
    )
