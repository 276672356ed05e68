"""The page in the browser: static files, a client of the server's public API (`pip install 'idefics[serve]'`)."""
