"""Fine-tuning: `run` trains an adapter, or a whole small model, on a user's own pictures and texts."""
