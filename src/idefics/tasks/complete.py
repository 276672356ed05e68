"""Prompted captioning: the model goes on with the caller's words."""

from idefics.tasks.record import Task

TASK = Task(
    name="complete",
    help='Continue your words about a picture, such as "This is an image of".',
    words="text",
    chat="Can you describe this image?",
    answer_start="{words}",
    line="{words}",
)
