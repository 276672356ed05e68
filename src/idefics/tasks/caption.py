"""Captioning: the model says what the picture shows, with no words from the caller."""

from idefics.tasks.task import Task

# The question is SmolVLM's card's; "Caption:" after each picture is the wording of the OBELICS evaluation for shots.
TASK = Task(
    name="caption",
    help="Say what a picture shows.",
    chat_prompt="Can you describe this image?",
    base_prompt_with_shots="Caption:",
)
