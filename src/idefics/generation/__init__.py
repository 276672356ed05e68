"""Pictures and words in, answers out: joins processing, models and the engine. Importing it imports torch."""

from idefics.generation.pipeline import Pipeline
from idefics.generation.streaming import GenerationResult, Stream
from idefics.options import GenerationOptions, Options

__all__ = ["Options", "Pipeline", "GenerationResult", "Stream", "GenerationOptions"]
