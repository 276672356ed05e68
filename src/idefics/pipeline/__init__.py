"""Pictures and words in, answers out: joins processing, models and the engine. Importing it imports torch."""

from idefics.pipeline.answering import Options, Reply, Stream, Wishes
from idefics.pipeline.pipeline import Pipeline

__all__ = ["Options", "Pipeline", "Reply", "Stream", "Wishes"]
