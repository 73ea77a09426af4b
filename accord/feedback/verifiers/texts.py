"""What a verifier reads of a response: its text, its final part, words and sentences, and whether it abstains."""

from __future__ import annotations

import re
from collections.abc import Iterable

from accord.feedback.findings import Finding
from accord.records import Response, Text

Answer = Text | Response
"""What a verifier takes: plain text, turns (their last assistant message counts), or a record with either."""

NO_TEXT = Finding(score=None, reason="the response has no text: it holds token ids only, or no assistant message")
ABSTENTIONS = (
    "I don't know",
    "I do not know",
    "I'm not sure",
    "I am not sure",
    "I cannot answer",
    "I can't answer",
    "I don't have enough information",
    "I do not have enough information",
)

_WORD = re.compile(r"\w+")
_TERMINATOR = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？।]+")
_ABBREVIATIONS = re.compile(
    r"(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e\.g|i\.e|cf|fig|vol|approx|dept|inc|ltd|co|gen|rev|hon|u\.s|u\.k|a\.m|p\.m)"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")


def response_text(response: Answer) -> str | None:
    """Return the text of a response: of turns the last assistant message; None where there is none to read."""
    content = response.content if isinstance(response, Response) else response
    if content is None or isinstance(content, str):
        return content
    return next((turn.content for turn in reversed(content) if turn.role == "assistant"), None)


def final_text(text: str, tag: str = "think") -> str:
    """Return what follows the last `</think>`; nothing where thinking began and never ended."""
    _, closing, after = text.rpartition(f"</{tag}>")
    if closing:
        return after
    return "" if f"<{tag}>" in text else text


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}`, braces matched; None without one, or where it is never closed."""
    boxes = boxed_contents(text)
    return boxes[-1] if boxes else None


def boxed_contents(text: str) -> list[str | None]:
    r"""Return the content of every `\boxed{…}` in order; None for one whose braces do not close."""
    closing = _closing_braces(text) if _BOX.search(text) else {}
    contents: list[str | None] = []
    for found in _BOX.finditer(text):
        start = found.end()
        if text[start : start + 1] == "{":
            end = closing.get(start)
            contents.append(None if end is None else text[start + 1 : end].strip())
        else:  # TeX takes the next token: `\boxed 7`
            contents.append(re.split(r"[\s$]", text[start : start + 200], maxsplit=1)[0].rstrip(".,"))
    return contents


def _closing_braces(text: str) -> dict[int, int]:
    """Map each opening brace to its closing one; `\\{` and `\\}` are text."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for found in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if found.group() == "{":
            opened.append(found.start())
        elif found.group() == "}" and opened:
            closing[opened.pop()] = found.start()
    return closing


def last_tagged(text: str, tag: str = "answer") -> str | None:
    """Return what stands between the last `</answer>` and the `<answer>` before it; None without such a pair."""
    found = re.finditer(rf"<(/?){re.escape(tag)}>", text, re.IGNORECASE)
    start, content = None, None
    for mark in found:
        if not mark.group(1):
            start = mark.end()
        elif start is not None:
            content, start = text[start : mark.start()], None
    return content


def unfenced(text: str) -> str:
    """Return a text without white space around it and without one fence of three backticks, with or without `json`."""
    text = text.strip()
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    inside = text[3:-3]
    return (inside[4:] if inside[:4].lower() == "json" else inside).strip()


def words_of(text: str) -> list[str]:
    """Return the words: runs of letters, digits and underscores, so that "don't" is two (as IFEval counts them)."""
    return _WORD.findall(text)


def count_sentences(text: str) -> int:
    """Return the number of sentences.

    A sentence ends at `. ! ? …` (and closing quotes or brackets) before white space or the end, or at a full stop of
    Chinese, Japanese or Devanagari; not after a common abbreviation or a single initial, nor before a lower-case
    letter. Words after the last end are a sentence; a piece without a word is none. No model and no word list is
    loaded, so counts may differ by a few from a trained splitter's.
    """
    pieces, start = [], 0
    for found in _TERMINATOR.finditer(text):
        if _ends_sentence(text, found):
            pieces.append(text[start : found.end()])
            start = found.end()
    pieces.append(text[start:])
    return sum(_WORD.search(piece) is not None for piece in pieces)


def _ends_sentence(text: str, found: re.Match[str]) -> bool:
    following = re.compile(r"\s*[\"'“‘(\[*]*(\w)").match(text, found.end())
    if following and following.group(1).islower():
        return False
    if found.group() != ".":
        return True
    before = text[max(0, found.start() - 12) : found.start()].split()
    word = before[-1].strip("\"'“‘([*").lower() if before else ""
    is_initial = len(word) == 1 and word.isalpha() and word != "i"
    return not is_initial and _ABBREVIATIONS.fullmatch(word) is None


def is_abstention(response: Answer, phrases: Iterable[str] = ABSTENTIONS) -> bool:
    """Return whether the final part of a response says, in one of these phrases, that it gives no answer.

    Case, white space and the shape of apostrophes do not matter; a phrase counts as whole words, anywhere. Ask this
    before asking whether the answer is right: otherwise "42. I don't know." is right or abstains, and never wrong.
    """
    text = response_text(response)
    if text is None:
        return False
    plain = _plain(final_text(text))
    return any(re.search(rf"(?<!\w){re.escape(_plain(phrase))}(?!\w)", plain) for phrase in phrases if phrase.strip())


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())
