"""The decode step as one call into C, from token ids to logits, on a CPU: see docs/native.md."""

from idefics.engine.native.decode import NativeDecode, unsupported_reason

__all__ = ["NativeDecode", "unsupported_reason"]
