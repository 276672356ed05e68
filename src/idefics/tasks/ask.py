"""Visual question answering."""

from idefics.tasks.task import Task

# Instruction and prompt are those of the published Idefics guide.
TASK = Task(
    name="ask",
    help="Answer a question about a picture.",
    examples=(
        'idefics ask photo.jpg "What is on the table?"',
        'idefics ask *.jpg "How many people are there?"',
        'idefics ask photo.jpg --prompt "Is it day or night?" --choices day,night --json',
    ),
    words_name="question",
    chat_prompt="{words}",
    base_instruction="Instruction: Provide an answer to the question. Use the image to answer.\n",
    base_prompt="Question: {words} Answer:",
)
