"""The checkpoints that idefics knows by a short name. Plain data; any other goes by hub id or folder.

Parameter counts, licences and ids: the checkpoints' own cards and files. Knows no tensors and reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idefics.host_memory import memory_in_all

Precision = Literal["float32", "bfloat16", "int8", "int4"]
# Bits of a number in the matrices of the decoder's layers, in other matrices that int8 and int4 make smaller, and
# anywhere else. int4 has a 16-bit scale for every 32 numbers. int8 has one for each output: left out.
BITS: dict[Precision, tuple[float, float, float]] = {
    "float32": (32, 32, 32),
    "bfloat16": (16, 16, 16),
    "int8": (8, 8, 16),
    "int4": (4 + 16 / 32, 8, 16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """One checkpoint.

    Attributes:
        names: short names, the one to show first.
        hub: id on the Hugging Face hub; "" for one inside the package.
        folder: folder inside the package; "" for one on the hub.
        family: the family's name, for people.
        model_type: config.json's word for the architecture.
        parameters: how many numbers its weights are.
        matrices: how many of them are in matrices of the decoder's layers, cross-attention included: what int8 and
            int4 make smaller.
        eights: how many are in matrices of the vision tower and in a head of one table, which int8 and int4 keep in
            eight bits. Connector, tables of tokens and norms stay as they are.
        twice: how many of `eights` are in a head that is tied: in few bits it stands beside the table of tokens.
        token_numbers: how many numbers the keys and values of one token are, in all layers.
        max_positions: tokens of the longest prompt, its answer included.
        licence: of the weights.
        kind: "base" continues documents, "instruct" follows a request, "chat" is tuned for long talk.
        note: what to know before choosing it, in one sentence; may be empty.
        video: whether it was trained with video.
    """

    names: tuple[str, ...]
    hub: str = ""
    folder: str = ""
    family: str
    model_type: str
    parameters: int
    matrices: int
    eights: int
    token_numbers: int
    max_positions: int
    licence: str
    kind: Literal["base", "instruct", "chat"]
    note: str = ""
    video: bool = False
    twice: int = 0

    @property
    def name(self) -> str:
        """The short name to show."""
        return self.names[0]


_LLAMA = "LLaMA 1 (non-commercial)"
_APACHE = "Apache-2.0"

CATALOG: tuple[CheckpointRow, ...] = (
    CheckpointRow(
        names=("demo",),
        folder="demo/idefics3",
        family="Idefics3",
        model_type="idefics3",
        parameters=3_493_440,
        matrices=1_587_200,
        eights=1_344_640,
        token_numbers=1_600,
        max_positions=1_024,
        licence=_APACHE,
        kind="instruct",
        note="Inside the package, needs no network; knows nothing but its picture book.",
    ),
    CheckpointRow(
        names=("demo-idefics1",),
        folder="demo/idefics1",
        family="Idefics",
        model_type="idefics",
        parameters=4_741_352,
        matrices=2_539_520,
        eights=1_024_000,
        token_numbers=1_280,
        max_positions=1_024,
        licence=_APACHE,
        kind="instruct",
        note="Inside the package, needs no network; knows nothing but its picture book.",
    ),
    CheckpointRow(
        names=("smolvlm-256m",),
        hub="HuggingFaceTB/SmolVLM-256M-Instruct",
        family="SmolVLM",
        model_type="idefics3",
        parameters=256_484_928,
        matrices=106_168_320,
        eights=113_319_936,
        token_numbers=11_520,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        note="The smallest for real photographs.",
    ),
    CheckpointRow(
        names=("smolvlm-500m",),
        hub="HuggingFaceTB/SmolVLM-500M-Instruct",
        family="SmolVLM",
        model_type="idefics3",
        parameters=507_482_304,
        matrices=314_572_800,
        eights=132_243_456,
        token_numbers=20_480,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        note="The default: good answers on a laptop's CPU.",
    ),
    CheckpointRow(
        names=("smolvlm-2.2b",),
        hub="HuggingFaceTB/SmolVLM-Instruct",
        family="SmolVLM",
        model_type="idefics3",
        parameters=2_246_272_880,
        matrices=1_610_612_736,
        eights=511_739_904,
        token_numbers=98_304,
        max_positions=16_384,
        licence=_APACHE,
        kind="instruct",
    ),
    CheckpointRow(
        names=("smolvlm2-256m",),
        hub="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        parameters=256_484_928,
        matrices=106_168_320,
        eights=113_319_936,
        token_numbers=11_520,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        video=True,
    ),
    CheckpointRow(
        names=("smolvlm2-500m",),
        hub="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        parameters=507_482_304,
        matrices=314_572_800,
        eights=132_243_456,
        token_numbers=20_480,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        video=True,
    ),
    CheckpointRow(
        names=("smolvlm2-2.2b",),
        hub="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        family="SmolVLM2",
        model_type="smolvlm",
        parameters=2_246_784_880,
        matrices=1_610_612_736,
        eights=511_995_904,
        token_numbers=98_304,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        video=True,
    ),
    CheckpointRow(
        names=("smoldocling-256m",),
        hub="docling-project/SmolDocling-256M-preview",
        family="SmolDocling",
        model_type="idefics3",
        parameters=256_484_928,
        matrices=106_168_320,
        eights=113_319_936,
        token_numbers=11_520,
        max_positions=8_192,
        licence="CDLA-Permissive-2.0",
        kind="instruct",
        note='Writes pages down as DocTags: "Convert this page to docling."',
    ),
    CheckpointRow(
        names=("granite-docling-258m",),
        hub="ibm-granite/granite-docling-258M",
        family="Granite Docling",
        model_type="idefics3",
        parameters=257_517_120,
        matrices=106_168_320,
        eights=142_737_408,
        twice=57_802_752,
        token_numbers=11_520,
        max_positions=8_192,
        licence=_APACHE,
        kind="instruct",
        note="Successor of SmolDocling.",
    ),
    CheckpointRow(
        names=("idefics3-8b",),
        hub="HuggingFaceM4/Idefics3-8B-Llama3",
        family="Idefics3",
        model_type="idefics3",
        parameters=8_462_086_384,
        matrices=6_979_321_856,
        eights=936_419_328,
        token_numbers=65_536,
        max_positions=131_072,
        licence=_APACHE,
        kind="instruct",
        note="Strong at documents, charts and text in pictures.",
    ),
    CheckpointRow(
        names=("idefics2-8b",),
        hub="HuggingFaceM4/idefics2-8b",
        family="Idefics2",
        model_type="idefics2",
        parameters=8_402_768_112,
        matrices=6_979_321_856,
        eights=542_154_752,
        token_numbers=65_536,
        max_positions=32_768,
        licence=_APACHE,
        kind="instruct",
    ),
    CheckpointRow(
        names=("idefics2-8b-base",),
        hub="HuggingFaceM4/idefics2-8b-base",
        family="Idefics2",
        model_type="idefics2",
        parameters=8_402_759_920,
        matrices=6_979_321_856,
        eights=542_150_656,
        token_numbers=65_536,
        max_positions=32_768,
        licence=_APACHE,
        kind="base",
    ),
    CheckpointRow(
        names=("idefics2-8b-chatty",),
        hub="HuggingFaceM4/idefics2-8b-chatty",
        family="Idefics2",
        model_type="idefics2",
        parameters=8_402_768_112,
        matrices=6_979_321_856,
        eights=542_154_752,
        token_numbers=65_536,
        max_positions=32_768,
        licence=_APACHE,
        kind="chat",
    ),
    CheckpointRow(
        names=("9b", "idefics-9b"),
        hub="HuggingFaceM4/idefics-9b",
        family="Idefics",
        model_type="idefics",
        parameters=8_929_679_632,
        matrices=7_910_457_344,
        eights=629_145_600,
        token_numbers=262_144,
        max_positions=2_048,
        licence=_LLAMA,
        kind="base",
        note="Learns a task from a few interleaved examples.",
    ),
    CheckpointRow(
        names=("9b-instruct", "idefics-9b-instruct"),
        hub="HuggingFaceM4/idefics-9b-instruct",
        family="Idefics",
        model_type="idefics",
        parameters=8_929_687_824,
        matrices=7_910_457_344,
        eights=629_145_600,
        token_numbers=262_144,
        max_positions=2_048,
        licence=_LLAMA,
        kind="instruct",
    ),
    CheckpointRow(
        names=("80b", "idefics-80b"),
        hub="HuggingFaceM4/idefics-80b",
        family="Idefics",
        model_type="idefics",
        parameters=79_967_843_624,
        matrices=78_685_143_040,
        eights=629_145_600,
        token_numbers=1_310_720,
        max_positions=2_048,
        licence=_LLAMA,
        kind="base",
    ),
    CheckpointRow(
        names=("80b-instruct", "idefics-80b-instruct"),
        hub="HuggingFaceM4/idefics-80b-instruct",
        family="Idefics",
        model_type="idefics",
        parameters=79_967_860_008,
        matrices=78_685_143_040,
        eights=629_145_600,
        token_numbers=1_310_720,
        max_positions=2_048,
        licence=_LLAMA,
        kind="instruct",
    ),
)

DEFAULT = "smolvlm-500m"

_BY_NAME = {name: row for row in CATALOG for name in row.names}


def resolve(name: str) -> CheckpointRow | None:
    """The row with this short name, upper and lower case alike; None where there is none."""
    return _BY_NAME.get(name.lower())


def short_names() -> tuple[str, ...]:
    """Every short name, in the order of the catalog."""
    return tuple(_BY_NAME)


def memory(row: CheckpointRow, precision: Precision) -> int:
    """Bytes that the weights take; pictures and the key/value cache come on top.

    Numbers times their bits, those of `BITS`; eights that are tied are counted a second time where they are smaller.
    """
    decoder, beside, outer = BITS[precision]
    rest = row.parameters - row.matrices - row.eights
    if beside != outer:
        rest += row.twice
    return round((row.matrices * decoder + row.eights * beside + rest * outer) / 8)


def in_all(row: CheckpointRow, precision: Precision) -> int:
    """Bytes that a process with the model takes at its peak on a CPU, prompts being asked one after another; about.

    Beside the weights: keys and values, which are float16 next to integers and else float32, pictures that have been
    encoded, and what Python, torch and a step take.
    """
    size = 2 if precision in ("int8", "int4") else 4
    return memory_in_all(memory(row, precision), size * row.token_numbers, row.max_positions)
