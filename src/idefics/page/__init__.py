"""The page in the browser: a Gradio application with seven tabs over one model (`pip install 'idefics[ui]'`)."""

import os

from idefics.page.temporary_folder import create_gradio_temporary_folder

# Gradio reads both settings when it is imported, so they are made first. No usage statistics are sent.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
create_gradio_temporary_folder()
