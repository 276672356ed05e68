"""Prompted captioning: continues the caller's text about a picture."""

from idefics.tasks.task import Task

TASK = Task(
    name="complete",
    help='Continue your words about a picture, such as "This is an image of".',
    examples=(
        'idefics complete photo.jpg "This is an image of"',
        'idefics complete *.jpg "The ground is" --max-new-tokens 12',
    ),
    words_name="text",
    chat_prompt="Can you describe this image?",
    answer_start="{words}",
    base_prompt="{words}",
)
