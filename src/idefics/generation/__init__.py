"""Load a checkpoint, generate, chat, score and stream: joins processing, models and the engine. Imports torch."""
