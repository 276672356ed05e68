"""Visual question answering."""

from idefics.tasks.task import Task

# Instruction and prompt are those of the published Idefics guide.
TASK = Task(
    name="ask",
    help="Answer a question about a picture.",
    words_name="question",
    chat_prompt="{words}",
    base_instruction="Instruction: Provide an answer to the question. Use the image to answer.\n",
    base_prompt="Question: {words} Answer:",
)
