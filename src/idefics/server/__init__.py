"""OpenAI's API over HTTP. Only `settings` is there without the extra: pip install 'idefics[serve]'."""
