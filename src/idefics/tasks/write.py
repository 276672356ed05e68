"""Image-guided writing: stories, product texts, whatever the instruction asks for."""

from idefics.tasks.record import Task

STORY = "Use the image to write a story."

# Instruction and line are those of the published Idefics guide.
TASK = Task(
    name="write",
    help="Write a text guided by a picture: a story unless you say what.",
    words="instruction",
    chat="{words}",
    lead="Instruction: {words} \n",
    line="Story: \n",
    max_new_tokens=256,
)
