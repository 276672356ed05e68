"""Document conversion: a page is written down as DocTags, by checkpoints trained for it."""

from idefics.tasks.task import Task

# The instruction and the limit are those of the cards of SmolDocling-256M-preview and granite-docling-258M. Further
# instructions of the cards: "Convert formula to LaTeX.", "Convert chart to table.", "Convert table to OTSL.",
# "Convert code to text.", "OCR the text in a specific location: <loc_155><loc_233><loc_206><loc_237>".
CONVERT_PAGE = "Convert this page to docling."

TASK = Task(
    name="read",
    help="Convert the page of a document to DocTags.",
    examples=(
        "idefics read scan.pdf --out book.md",
        "idefics read scan.pdf --pages 1-3,7 --to html > pages.html",
        "idefics read pages/ --out pages.json",
        'idefics read formula.png "Convert formula to LaTeX."',
    ),
    words_name="instruction",
    default_words=CONVERT_PAGE,
    chat_prompt="{words}",
    base_prompt="{words}",
    max_new_tokens=8192,
    needs_doctags=True,
)
