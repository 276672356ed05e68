"""Image-guided writing: a story, a product text or whatever else the instruction asks for."""

from idefics.tasks.task import Task

STORY = "Use the image to write a story."

# Instruction and prompt are those of the published Idefics guide.
TASK = Task(
    name="write",
    help="Write a text guided by a picture: a story unless you say what.",
    examples=(
        "idefics write photo.jpg",
        'idefics write photo.jpg "Write a short advertisement for this." --max-new-tokens 120',
        "idefics write photo.jpg --temperature 0.8 --top-p 0.95 --seed 7",
    ),
    words_name="instruction",
    default_words=STORY,
    chat_prompt="{words}",
    base_instruction="Instruction: {words} \n",
    base_prompt="Story: \n",
    max_new_tokens=256,
)
