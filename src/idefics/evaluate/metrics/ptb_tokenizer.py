"""Penn Treebank tokenisation of captions, as pycocoevalcap does it before it computes CIDEr-D."""

from __future__ import annotations

import re

from idefics.evaluate.metrics import ptb_words

# Parts of regular expressions. Letters include accents that are characters of their own, and hyphens that are not "-".
_NUMERALS = (
    r"\xb2\xb3\xb9\xbc-\xbe\u2070\u2074-\u2079\u2080-\u2089\u2150-\u215f\u2460-\u249b"
    r"\u24ea-\u24ff\u2776-\u2793"
)
_LETTER = rf"(?:[^\W\d_{_NUMERALS}]|[\xad\u0300-\u036f\u2010\u2011])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOSTROPHE = "['\u2019]"
_AUXILIARY = rf"{_APOSTROPHE}(?i:[dms]|ll|re|ve)"
_NOT = rf"[nN]{_APOSTROPHE}[tT]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"  # a full stop without a space divides nothing
_COMPOUND = rf"{_ALNUM}+(?:[-_]{_ALNUM}+)*"
_NAME = (
    rf"(?:[A-HJ-XZn][`'\u2019]{_LETTER}{{2,}}|[dDlLoO][`'\u2019]{_LETTER}{_ALNUM}+"  # D'Artagnan, O'Brien
    rf"|{_LETTER}+[aeiouyAEIOUY][`'\u2019][aeiouA-Z]{_LETTER}*)"  # ma'am
)
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_LAST_IN_URL = r"[^\s\"<>|.!?(){},-]"
_PATH = rf"/[^\s\"<>|()]+{_LAST_IN_URL}"
_ATTRIBUTE = r" +[A-Za-z][\w:-]*(?: *= *(?:'[^']*'|\"[^\"]*\"))?"
_TAG = rf"<(?:[!?][^>\n]*|/?[A-Za-z][\w:.-]*(?:{_ATTRIBUTE})* */?)>"


def _any_of(words: str) -> str:
    """A regular expression for one of the words."""
    return "(?:" + "|".join(words.split()) + ")"


def _capitalized(words: str) -> str:
    """A regular expression for one of the words with a capital, the other letters in any case."""
    return _any_of(" ".join(f"{word[0].upper()}(?i:{word[1:]})" for word in words.split()))


_APOSTROPHE_WORDS = _any_of(ptb_words.APOSTROPHE_WORDS).replace("'", _APOSTROPHE)

# The longest match at a place wins, the first of equally long ones. Group 1 is the token; what follows the group has to
# be there and counts for the length.
_RULES = tuple(
    re.compile(rule)
    for rule in (
        *(r"(?i:({})({}))".format(*pair.split()) for pair in ptb_words.DOUBLE_WORDS),
        r"(?i:('t)(?:is|was))",
        rf"({_TAG})",
        rf"([A-Za-z]+){_NOT}",
        rf"({_NOT})",
        rf"({_WORD}){_AUXILIARY}",
        rf"({_AUXILIARY})(?![A-Za-z])",
        rf"({_APOSTROPHE}(?i:em|till?|cause|[2-9]0s|n{_APOSTROPHE}))",
        rf"({_APOSTROPHE}(?:[nN](?!{_ALNUM})|\d\d(?=\s|$)))",
        rf"((?i:[djl]|ol|dunkin|somethin){_APOSTROPHE})",
        rf"([yY]{_APOSTROPHE}){_LETTER}",
        rf"((?i:{_APOSTROPHE_WORDS}))",
        rf"((?i:https?)://[^\s\"<>|()]+{_LAST_IN_URL})",
        rf"((?i:www)\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:{_PATH})?)",
        rf"((?:[^\s\"`'<>|.!?(){{}},\-_$0-9/@]+\.)+(?i:com|net|org|edu)(?:{_PATH})?)",
        r"(<?[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?)",
        r"(@[A-Za-z_][A-Za-z_0-9]*)",
        rf"(#{_LETTER}+)",
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"((?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4})",
        r"([+-]?\d*(?:[.:,]\d+)+|[+-]?\d+)",
        r"((?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5})",
        rf"((?i:ph\.d|{_any_of(ptb_words.ABBREVIATIONS)})\.)",
        rf"({_any_of(ptb_words.ABBREVIATIONS_NOT_IN_CAPITALS)}\.)",
        rf"({_capitalized(ptb_words.ABBREVIATIONS_WITH_A_CAPITAL)}\.)",
        rf"((?i:{_any_of(ptb_words.ABBREVIATIONS_BEFORE_NUMBERS)})\.)\s?\d",
        r"([A-Za-z](?:\.[A-Za-z])*\.)",
        rf"([A-Za-z])\.\s+(?:{_capitalized(ptb_words.SENTENCE_STARTERS)}(?:\s|$)|{_TAG})",
        rf"((?:{_WORD}|{_COMPOUND}|{_NAME})\.)[,;:]",
        r"([A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+)",
        rf"({_PART}(?:\\?/{_PART}){{1,2}})",
        r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+)",
        rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_any_of(ptb_words.FILE_SUFFIXES)}))(?=[\s.,?!]|$)",
        rf"({_COMPOUND})",
        rf"({_WORD})",
        rf"({_NAME})",
        r"([cC]\+\+|[cCfF]#)",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])",  # smileys
        r"([-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\))",
        r"([A-Z]*\$)",
        r"(&(?:#\d+|[aeiouAEIOU](?:acute|grave|uml)|(?i:amp|lt|gt|quot|nbsp|[mn]dash));)",
        r"([?!]+|\.{3,}|-{2,}|_+|\\?\*+|#+|@+|<<|>>|''|``)",
    )
)
_DIVIDED = re.compile(rf"{_AUXILIARY}|{_NOT}")  # the halves of words that get a plain apostrophe
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?=\s|$)")
_DOUBLE_WORDS = frozenset(pair.replace(" ", "") for pair in ptb_words.DOUBLE_WORDS)

# Other characters that are tokens of their own. What is not among them, such as an emoji, is left out.
_SYMBOL = re.compile(
    r"[!-~\xa1-\xa9\xac\xae-\xba\xbc-\xbf\xd7\xf7\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b-\u2044\u2070-\u208e"
    r"\u20a0-\u20bf\u2100-\u214f\u2150-\u215f\u2190-\u2bff\u3001\u3002\u3012\uff01-\uffe6]"
)
_REPLACED = (
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"\xa2": "cents", "\xa3": "#", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}
    | {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
    | {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
    | dict.fromkeys(["&quot;", "&nbsp;", "&mdash;", "&ndash;"], "")
)
_IN_TOKENS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "\xad": None})
_REMOVED = frozenset(
    [
        "",
        "''",
        "'",
        "``",
        "`",
        '"',
        ".",
        "?",
        "!",
        ",",
        ":",
        "-",
        "--",
        "---",
        "----",
        ";",
        "\u2010",
        "\u2011",
    ]
)


def tokenize_ptb(text: str) -> list[str]:
    """Splits a text into words in lower case, without punctuation.

    Source: the behaviour of `PTBTokenizer` in pycocoevalcap 1.2 (github.com/salaniz/pycocoevalcap,
    tokenizer/ptbtokenizer.py), which starts the tokenizer of Stanford CoreNLP 3.4.1 in Java and then leaves out 17
    punctuation marks. The rules here were found by comparing answers; nothing of CoreNLP was copied.

    What is odd about it:
        - "don't" is "do" and "n't", "dog's" "dog" and "'s", "cannot" "can" and "not"; "o'clock" is one token.
        - Brackets are not left out: "(" becomes "-lrb-" since the marks to leave out are "-LRB-" in capitals. So
          are "?!", "!!", "-----" and all marks that are not among the 17, such as "/", "*" and "%".
        - Hyphens, underscores and slashes divide no word, and neither does a full stop without a space: "mat.The".
        - Abbreviations and single letters keep the full stop, "st." and "a."; so does each word before ".,", ".;"
          and ".:".
        - "$5.00" is "$" and "5.00", "\xa35" "#" and "5", "\xbd" "1/2". Emoji above U+FFFF are left out.

    What is not imitated: pycocoevalcap tokenises all captions of a data set as one text, one a line, and in rare
    cases the next line decides, such as one that begins with a number after "no." at the end of a caption. Some
    abbreviations are divided from a single letter that follows without a space, "etc.x", and are not here.
    """
    text = text.replace("&apos;", "'")
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        token, place = _next_token(text, place)
        if token not in _REMOVED:
            tokens += token.split()  # the tokens of telephone numbers and tags may have spaces
    return tokens


def _next_token(text: str, place: int) -> tuple[str, int]:
    """The token that begins at a place, "" if the character is left out, and where the next one may begin."""
    word = _PLAIN_WORD.match(text, place)
    if word and word.group().lower() not in _DOUBLE_WORDS:  # the usual case, for speed
        return word.group().lower(), word.end()
    matches = [match for rule in _RULES if (match := rule.match(text, place))]
    if matches:
        longest = max(matches, key=re.Match.end)
        return _normalize(longest.group(1)), longest.end(1)
    character = text[place]
    return (_normalize(character) if _SYMBOL.match(character) else ""), place + 1


def _normalize(token: str) -> str:
    """The spelling of a token in the output."""
    token = token.lower()
    if token.startswith("..."):
        return ""
    if _DIVIDED.fullmatch(token):
        return token.replace("\u2019", "'")
    if token in _REPLACED:
        return _REPLACED[token]
    return token.replace("&amp;", "&").translate(_IN_TOKENS)
