"""The page in the browser: seven tabs over one loaded model. Its modules need `pip install 'idefics[ui]'`."""

import os

from idefics.page.temporary_folder import create_temporary_folder

# Gradio reads these when it is imported. What is done on this page is nobody else's business.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
create_temporary_folder()
