"""Verifiable instructions: the 25 kinds of IFEval, each a check of one text, and the verdict over a prompt's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from accord.errors import DataError
from accord.feedback.findings import Finding
from accord.feedback.verifiers.formats import detected_language
from accord.feedback.verifiers.spec import Column, VerifierSpec, checked_values, keyword_parameters
from accord.feedback.verifiers.texts import (
    NO_TEXT,
    Answer,
    count_sentences,
    final_text,
    response_text,
    unfenced,
    words_of,
)

Relation = Literal["at least", "less than"]
Count = Annotated[int, Ge(0)]
Phrase = Annotated[str, MinLen(1)]
Phrases = Annotated[list[Phrase], MinLen(1)]


def ifeval(
    response: Answer,
    instruction_ids: Sequence[str] | str,
    kwargs: Sequence[Mapping[str, Any]] | str,
    *,
    aggregation: Literal["all", "mean"] = "all",
    is_loose: bool = False,
) -> Finding:
    """Score how far a response follows the verifiable instructions of its prompt.

    `all` scores 1 where every instruction is followed and else 0 (the benchmark's prompt level); `mean` is the share
    that is followed (usual as a reward). `parts` has each of them. `is_loose` counts an instruction as followed if one
    of eight texts follows it: with or without the first line, the last line and all asterisks. What precedes
    `</think>` is not read. An empty text follows nothing. Instruction ids and their arguments are those of IFEval; an
    argument that is None counts as not given.
    Raises DataError for an unknown id or argument, FeedbackError where a language is asked for without the extra
    `verifiers`. Source: Zhou et al. 2023, arXiv:2311.07911. Limits: sentences, words and capital words are found by
    rules (see `texts`), not by a trained tokenizer, so counts near a bound may differ from the published checker's.
    """
    checks = read_instructions(instruction_ids, kwargs)
    text = response_text(response)
    if text is None:
        return NO_TEXT
    text = final_text(text)
    texts = loosened(text) if is_loose else [text]
    parts: dict[str, float | None] = {}
    for name, check in checks:
        key = name if name not in parts else f"{name}#{sum(part.startswith(name) for part in parts) + 1}"
        parts[key] = float(any(bool(version.strip()) and check(version) for version in texts))
    followed = sum(value == 1 for value in parts.values())
    score = float(followed == len(parts)) if aggregation == "all" else followed / len(parts)
    failed = [key for key, value in parts.items() if value != 1]
    reason = f"follows {followed} of {len(parts)} instructions" + (f", not {', '.join(failed)}" if failed else "")
    return Finding(score=score, reason=reason, parts=parts)


def loosened(text: str) -> list[str]:
    """Return the text with and without its first line, its last line, both, and each of these without asterisks."""
    lines = text.split("\n")
    versions = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*versions, *(version.replace("*", "") for version in versions)]


def read_instructions(
    instruction_ids: Sequence[str] | str, kwargs: Sequence[Mapping[str, Any]] | str
) -> list[tuple[str, Callable[[str], bool]]]:
    """Return each instruction's id with its check. Raises DataError naming the instruction and what is wrong.

    Both columns may be JSON texts, as in tables whose cells hold no lists.
    """
    names, arguments = _as_list(instruction_ids, "instruction_ids"), _as_list(kwargs, "kwargs")
    if not names or len(names) != len(arguments):
        raise DataError(f"got {len(names)} instruction ids and {len(arguments)} kwargs — expected as many, and one")
    return [(str(name), _bound_check(name, given)) for name, given in zip(names, arguments, strict=True)]


def _bound_check(name: Any, given: Any) -> Callable[[str], bool]:
    check = INSTRUCTIONS.get(name)
    if check is None:
        raise DataError(f"got the instruction {name!r} — expected one of {', '.join(INSTRUCTIONS)}")
    if given is not None and not isinstance(given, Mapping):
        raise DataError(f"{name}: got kwargs {given!r:.80} — expected a mapping")
    said = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        values = checked_values(keyword_parameters(check), said)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    return lambda text: check(text, **values)


def _as_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"got {name} {value!r:.80} — expected a list, or JSON of one") from None
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise DataError(f"got {name} {value!r:.80} — expected a list")
    return list(value)


def _holds(count: int, relation: Relation, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


def _count(phrase: str, text: str) -> int:
    return len(re.findall(re.escape(phrase), text, re.IGNORECASE))


def _keywords_exist(text: str, *, keywords: Phrases) -> bool:
    return all(_count(keyword, text) > 0 for keyword in keywords)


def _keyword_frequency(text: str, *, keyword: Phrase, frequency: Count, relation: Relation) -> bool:
    return _holds(_count(keyword.strip(), text), relation, frequency)


def _no_forbidden_words(text: str, *, forbidden_words: Phrases) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, *, letter: Phrase, let_frequency: Count, let_relation: Relation) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _in_language(text: str, *, language: Phrase) -> bool:
    return detected_language(text) == language


def _sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def _words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return _holds(len(words_of(text)), relation, num_words)


def _paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """Paragraphs stand between `***`; an empty one between two dividers breaks the layout."""
    pieces = [piece.strip() for piece in text.split("***")]
    inner = pieces[1:-1]
    return all(inner) and sum(map(bool, pieces)) == num_paragraphs


def _nth_paragraph(
    text: str, *, num_paragraphs: Count, nth_paragraph: Annotated[int, Ge(1)], first_word: Phrase
) -> bool:
    """Paragraphs stand between empty lines here."""
    pieces = [piece.strip() for piece in re.split(r"\n\s*\n", text) if piece.strip()]
    if len(pieces) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    first = re.match(r"[^.,?!'\"]*", pieces[nth_paragraph - 1].split()[0].lstrip("'\"*_#(“‘"))
    return first is not None and first.group().rstrip("*_:;)”’").lower() == first_word.lower()


def _placeholders(text: str, *, num_placeholders: Count) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: Phrase) -> bool:
    """Spaces may stand between the letters of the marker: "P. S." is "P.S."; a last full stop may be missing."""
    letters = postscript_marker.strip().rstrip(".").split(".")
    pattern = r"\.\s?".join(re.escape(letter.strip()) for letter in letters)
    ends_in_stop = len(letters) > 1 and postscript_marker.strip().endswith(".")
    return re.search(rf"(?<!\w){pattern}" + (r"\." if ends_in_stop else r"(?!\w)"), text, re.IGNORECASE) is not None


def _bullets(text: str, *, num_bullets: Count) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*(?!\*)|-(?!-)).*\S.*$", text, re.MULTILINE)) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _highlights(text: str, *, num_highlights: Count) -> bool:
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool("".join(parts).strip()) for parts in found) >= num_highlights


def _section_count(text: str, *, section_spliter: Phrase, num_sections: Count) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    try:
        json.loads(unfenced(text))
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(line.partition("<<")[2].rpartition(">>")[0].strip("<> \t") for line in text.splitlines())


def _two_responses(text: str) -> bool:
    """Two different answers with `******` between them; one more divider at either end is allowed."""
    pieces = [piece.strip() for piece in text.split("******")]
    if not all(pieces[1:-1]):
        return False
    answers = [piece for piece in pieces if piece]
    return len(answers) == 2 and answers[0] != answers[1]


def _repeats_prompt(text: str, *, prompt_to_repeat: Phrase) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, *, end_phrase: Phrase) -> bool:
    return text.strip().strip('"').strip().lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped.startswith('"') and stripped.endswith('"')


def _capital_words(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    """A word keeps its inner apostrophes, hyphens and full stops; a single "I" or "A" is a capital word."""
    words = re.findall(r"\w+(?:['’.-]\w+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capitals(text: str) -> bool:
    return text.isupper() and detected_language(text.lower()) == "en"  # profiles of languages are lower-case text


def _english_lowercase(text: str) -> bool:
    return text.islower() and detected_language(text) == "en"


def _no_comma(text: str) -> bool:
    return "," not in text


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords_exist,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _no_forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _in_language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _section_count,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capitals,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}


def _check_columns(instruction_ids: Any, kwargs: Any) -> None:
    read_instructions(instruction_ids, kwargs)


ROWS: dict[str, VerifierSpec] = {
    "ifeval": VerifierSpec(
        fn=ifeval,
        columns={
            "instruction_ids": Column("instruction_id_list", "a list of IFEval's instruction ids"),
            "kwargs": Column("kwargs", "a list with the arguments of each instruction"),
        },
        check_columns=_check_columns,
        requires=("langdetect",),
        source="Zhou et al. 2023, arXiv:2311.07911",
    ),
}
