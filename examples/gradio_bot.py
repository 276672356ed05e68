"""A page with two fields, the address of a picture and the beginning of a text, which the model continues.

    pip install gradio
    python examples/gradio_bot.py --model 9b

docs/guides/bot-with-idefics-9b.md builds the same page with the classes of `idefics.compat`.
"""

import argparse

import gradio as gr

import idefics


def build_page(vlm: idefics.Idefics) -> gr.Interface:
    """Returns the page; `launch` serves it on this machine."""

    def continue_text(address: str, beginning: str) -> tuple[str, str]:
        if not address.startswith(("http://", "https://")):  # not a file of this machine
            raise gr.Error("give the address of a picture, such as https://example.com/photo.jpg")
        try:
            return vlm.complete(address, beginning).text, address
        except idefics.IdeficsError as error:
            raise gr.Error(str(error)) from None

    return gr.Interface(
        fn=continue_text,
        inputs=[gr.Textbox(label="Picture address"), gr.Textbox("This is an image of", label="Beginning")],
        outputs=[gr.Textbox(label="Continued"), gr.Image(label="Picture")],
        title="Idefics continues a text about a picture",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    build_page(idefics.load(parser.parse_args().model)).launch()
