"""Load a checkpoint, generate, chat, score and stream: joins processing, models and the engine. Imports torch."""

from idefics.generation.pipeline import Pipeline
from idefics.generation.streaming import GenerationResult, Stream
from idefics.options import GenerationOptions, Options

__all__ = ["Options", "Pipeline", "GenerationResult", "Stream", "GenerationOptions"]
