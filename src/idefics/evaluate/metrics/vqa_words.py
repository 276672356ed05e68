"""The words that VQA normalisers replace: numbers, articles and contractions.

Source: the tables of github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py. The authors of
Idefics use the same ones.
"""

from __future__ import annotations

ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd
    you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    """The spellings of a word that lack one of its apostrophes."""
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


# Words with a capital I are never found, as texts are in lower case. "somebody'd" loses what the others get.
CONTRACTIONS = {
    spelling: word for word in _CONTRACTIONS.split() for spelling in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}
