"""Captioning: describes a picture, without a text from the caller."""

from idefics.tasks.task import Task

# The question is from SmolVLM's model card; "Caption:" after each picture is the few-shot prompt of OBELICS.
TASK = Task(
    name="caption",
    help="Say what a picture shows.",
    examples=(
        "idefics caption photo.jpg",
        "idefics caption photos/ > captions.txt",
        "idefics caption photo.jpg --shots shots.jsonl",
        "cat photo.jpg | idefics caption - --json",
    ),
    chat_prompt="Can you describe this image?",
    base_prompt_with_shots="Caption:",
)
