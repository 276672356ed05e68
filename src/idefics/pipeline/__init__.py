"""Pictures and words in, answers out: joins processing, models and the engine. Importing it imports torch."""

from idefics.options import Options, Wishes
from idefics.pipeline.answering import Reply, Stream
from idefics.pipeline.pipeline import Pipeline

__all__ = ["Options", "Pipeline", "Reply", "Stream", "Wishes"]
