"""A decode step as one call into C: everything from ids to logits, on a CPU."""

from idefics.engine.native.decode import NativeDecode, unsupported_reason
from idefics.engine.native.library import instruction_sets

__all__ = ["NativeDecode", "instruction_sets", "unsupported_reason"]
