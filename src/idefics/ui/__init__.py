"""The page in the browser: seven tabs over one loaded model. Its modules need `pip install 'idefics[ui]'`."""

import os

# Gradio reads it when it is imported: what is done on this page is nobody else's business.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
