"""OpenAI-compatible HTTP server. All but `settings` and `sockets` needs the extra: pip install 'idefics[serve]'."""
