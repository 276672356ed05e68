"""Docling's ready-made options for a server of Granite-Docling: its parameters as they stand, but for the name."""

from docling.datamodel.vlm_model_specs import GRANITEDOCLING_VLLM_API
from docling.utils.api_image_request import api_image_request, api_image_request_streaming
from PIL import Image
from program_setup import BASE_URL, MODEL, PICTURE, QUESTION, print_answers

options = GRANITEDOCLING_VLLM_API
extra = {"temperature": options.temperature, "stop": options.stop_strings}
params = {**options.params, "model": MODEL}
image = Image.open(PICTURE)
url = f"{BASE_URL}/chat/completions"
whole = api_image_request(image, QUESTION, url, **params, **extra)
streamed = api_image_request_streaming(image, QUESTION, url=url, **params, **extra)
print_answers(first=[whole.text, streamed.text.strip()])
