"""A decode step as one call into C: everything from ids to logits, on a CPU."""

from idefics.engine.native.decode import NativeDecode, unsupported_reason

__all__ = ["NativeDecode", "unsupported_reason"]
