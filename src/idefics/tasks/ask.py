"""Visual question answering."""

from idefics.tasks.record import Task

# The instruction and the line are those of the published Idefics guide.
TASK = Task(
    name="ask",
    help="Answer a question about a picture.",
    words="question",
    chat="{words}",
    lead="Instruction: Provide an answer to the question. Use the image to answer.\n",
    line="Question: {words} Answer:",
)
