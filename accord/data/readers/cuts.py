r"""Where a prompt ends inside a text that holds prompt and response: at turns, at words, at "\n\nAssistant:"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accord.records import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def common_turns(left: Sequence[Message], right: Sequence[Message]) -> int:
    """Count the leading turns two conversations share, leaving each at least its last turn."""
    limit = min(len(left), len(right)) - 1
    count = 0
    while count < limit and left[count] == right[count]:
        count += 1
    return count


def cut_common_words(left: str, right: str) -> int:
    """Return where to cut two plain texts after their common words; both remainders keep their leading space.

    Never inside a word: on one side of the cut stands white space (or the start of the text). Where one text begins
    with the whole other, the cut goes back one word so that neither remainder is empty.
    """
    limit = min(len(left), len(right))
    common = next((i for i in range(limit) if left[i] != right[i]), limit)
    if common < limit and left[common].isspace() and right[common].isspace():
        return common  # the same word, then different white space
    cut = common if common < limit else len(left[:common].rstrip())
    while cut > 0 and not left[cut - 1].isspace():
        cut -= 1
    # The space belongs to the word after it, as in byte-level vocabularies; a line break belongs to the prompt.
    return cut - 1 if cut > 0 and left[cut - 1] == " " else cut


def is_transcript(text: str) -> bool:
    """Say whether a text looks like "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return ASSISTANT in text and text.lstrip().startswith("Human:")


def cut_transcript(text: str) -> tuple[str, str]:
    """Split a transcript at its last "Assistant:" into (what comes before it, the answer without its one space)."""
    prompt, _, answer = text.rpartition(ASSISTANT)
    return prompt, answer.removeprefix(" ")


def transcript_turns(prompt: str) -> tuple[Message, ...]:
    """Split what stands before the last "Assistant:" into turns, each without the one space after its speaker."""
    pieces = _SPEAKER.split("\n\n" + prompt.lstrip())  # text before the first speaker, then speaker, text, …
    return tuple(
        Message(role=_ROLES[speaker], content=content.removeprefix(" "))
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )
