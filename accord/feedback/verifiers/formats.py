"""Verifiers of form: think tags, a boxed answer, a pattern, a JSON schema, length, repetition and language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from accord.feedback.findings import Finding
from accord.feedback.verifiers.spec import VerifierSpec, require
from accord.feedback.verifiers.texts import (
    NO_TEXT,
    Answer,
    boxed_contents,
    final_text,
    response_text,
    unfenced,
    words_of,
)
from accord.records import Response

_LANGUAGE_CHARACTERS = 10_000  # enough to tell a language, and a bound on the time


def think_format(
    response: Answer, *, tag: Annotated[str, MinLen(1)] = "think", is_opened_by_prompt: bool = False
) -> Finding:
    """Score 1 where the text is `<think>…</think>` and then an answer, each tag exactly once, else 0.

    Neither the thoughts nor the answer may be empty. `is_opened_by_prompt`: the opening tag is the end of the prompt
    and must not be repeated. Source: Guo et al. 2025, arXiv:2501.12948 (where it is summed with accuracy).
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    opening, closing = f"<{tag}>", f"</{tag}>"
    text = opening + text if is_opened_by_prompt else text.lstrip()
    problem = None
    if not text.startswith(opening):
        problem = f"does not begin with {opening}"
    elif text.count(opening) != 1 or text.count(closing) != 1:
        problem = f"has {text.count(opening)} {opening} and {text.count(closing)} {closing}"
    else:
        thoughts, _, answer = text.removeprefix(opening).partition(closing)
        if not thoughts.strip() or not answer.strip():
            problem = "has empty thoughts" if not thoughts.strip() else "has no answer after the thoughts"
    return _verdict(problem, "thinks, then answers")


def boxed_format(response: Answer) -> Finding:
    r"""Score 1 where the final part has exactly one `\boxed{…}` and something in it, else 0."""
    text = response_text(response)
    if text is None:
        return NO_TEXT
    boxes = boxed_contents(final_text(text))
    if len(boxes) != 1:
        return _verdict(f"has {len(boxes)} boxed answers", "")
    return _verdict(None if boxes[0] else "has an empty or unclosed box", "has one boxed answer")


def regex(
    response: Answer,
    *,
    pattern: Annotated[str, MinLen(1)],
    is_full: bool = False,
    timeout_seconds: Annotated[float, Gt(0), Le(60)] = 1.0,
) -> Finding:
    """Score 1 where the pattern is found in the final part of the response (`is_full`: matches all of it), else 0.

    The syntax is that of the package `regex`, a superset of Python's; `.` meets line breaks only under `(?s)`.
    Unknown where matching takes longer than `timeout_seconds`.
    """
    import regex as engine

    text = response_text(response)
    if text is None:
        return NO_TEXT
    compiled = engine.compile(pattern)
    match = compiled.fullmatch if is_full else compiled.search
    try:
        found = match(final_text(text).strip(), timeout=timeout_seconds)
    except TimeoutError:
        return Finding(score=None, reason=f"the pattern took longer than {timeout_seconds:g} s")
    return _verdict(None if found else "does not match the pattern", "matches the pattern")


def _check_pattern(*, pattern: str, **_: Any) -> None:
    import regex as engine

    try:
        engine.compile(pattern)
    except engine.error as error:
        raise ValueError(f"got pattern={pattern!r} — expected a regular expression ({error})") from None


def json_schema(response: Answer, *, expected_schema: dict[str, Any]) -> Finding:
    """Score 1 where the final part of the response is JSON that fits the schema, else 0.

    A fence of three backticks around it is allowed, text before or after is not; NaN and Infinity are no JSON. The
    schema is of JSON Schema's draft 2020-12 unless its `$schema` names another; `{}` takes any JSON. References
    outside the schema are not fetched. Unknown where JSON nests too deeply for the checker.
    Raises FeedbackError without the extra `verifiers`.
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    checker = _schema_checker(json.dumps(expected_schema, sort_keys=True))
    try:
        value = json.loads(unfenced(final_text(text)), parse_constant=_refuse)
        problem = next(iter(checker.iter_errors(value)), None)
    except RecursionError:
        return Finding(score=None, reason="the JSON nests too deeply to be checked")
    except ValueError as error:
        return _verdict(f"is no JSON ({error!s:.80})", "")
    return _verdict(None if problem is None else f"does not fit the schema: {problem.message:.120}", "fits the schema")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@cache
def _schema_checker(schema: str) -> Any:
    require("jsonschema", "the verifier 'json_schema'")
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    value = json.loads(schema)
    return validator_for(value, default=Draft202012Validator)(value, registry=Registry())  # empty: fetches nothing


def _check_schema(*, expected_schema: dict[str, Any]) -> None:
    require("jsonschema", "the verifier 'json_schema'")
    from jsonschema.exceptions import SchemaError

    checker = _schema_checker(json.dumps(expected_schema, sort_keys=True))
    try:
        checker.check_schema(expected_schema)
    except SchemaError as error:
        raise ValueError(
            f"got expected_schema={expected_schema!r:.80} — expected a JSON schema ({error.message:.120})"
        ) from None
    _check_references(expected_schema)


def _check_references(schema: Any) -> None:
    children = [*schema.values()] if isinstance(schema, Mapping) else schema if isinstance(schema, list) else []
    if isinstance(schema, Mapping) and not str(schema.get("$ref", "#")).startswith("#"):
        raise ValueError(f"got $ref={schema['$ref']!r} — expected one inside the schema (#/…): nothing is fetched")
    for child in children:
        _check_references(child)


def length(
    response: Answer,
    *,
    unit: Literal["tokens", "words", "characters"] = "words",
    minimum: Annotated[int, Ge(0)] = 0,
    maximum: Annotated[int, Ge(0)] | None = None,
) -> Finding:
    """Score 1 where the whole response, thoughts included, has between `minimum` and `maximum` units, else 0.

    Words are runs of letters and digits. Tokens are those that were sampled: unknown for a response read from text.
    """
    if unit == "tokens":
        if not isinstance(response, Response) or response.token_ids is None:
            return Finding(score=None, reason="the response has no token ids to be counted")
        count = len(response.token_ids)
    else:
        text = response_text(response)
        if text is None:
            return NO_TEXT
        count = len(text) if unit == "characters" else len(words_of(text))
    is_inside = minimum <= count and (maximum is None or count <= maximum)
    return Finding(score=float(is_inside), reason=f"the response has {count} {unit}")


def _check_bounds(*, minimum: int, maximum: int | None, **_: Any) -> None:
    if maximum is not None and maximum < minimum:
        raise ValueError(f"got minimum={minimum} and maximum={maximum} — expected minimum ≤ maximum")


def repetition(response: Answer, *, n: Annotated[int, Ge(1)] = 3) -> Finding:
    """Score −(1 − unique n-grams / n-grams) over lower-case words, thoughts included: 0 without repetition, above −1.

    Fewer than n words cannot repeat: 0. A penalty, to be added with a weight.
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    words = [word.lower() for word in words_of(text)]
    total = len(words) - n + 1
    if total < 1:
        return Finding(score=0.0, reason=f"fewer than {n} words")
    unique = len({tuple(words[start : start + n]) for start in range(total)})
    return Finding(score=unique / total - 1.0, reason=f"{unique} of {total} {n}-grams are unique")


def language(
    response: Answer, *, language: Annotated[str, MinLen(2)] = "en", unit: Literal["text", "line"] = "text"
) -> Finding:
    """Score 1 where the final part is in the language, else 0; with `unit="line"` the share of its words that are.

    `line` detects line by line and weighs each by its words, a reward for not mixing languages. Languages are ISO 639-1
    codes; `zh` takes both scripts. A text without letters is in no language. Detection is that of `langdetect` with a
    fixed seed: below about five words it guesses. Raises FeedbackError without the extra `verifiers`.
    """
    text = response_text(response)
    if text is None:
        return NO_TEXT
    pieces = final_text(text).splitlines() if unit == "line" else [final_text(text)]
    sizes = [(len(words_of(piece)), detected_language(piece)) for piece in pieces if words_of(piece)]
    total = sum(size for size, _ in sizes)
    if not total:
        return Finding(score=0.0, reason="the response has no words")
    share = sum(size for size, found in sizes if found is not None and _is_language(found, language)) / total
    found = ", ".join(dict.fromkeys(found or "none" for _, found in sizes))
    return Finding(score=share, reason=f"found {found}, expected {language}")


def detected_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, None where it has no letters to tell by.

    The same text always gives the same code. Raises FeedbackError without the extra `verifiers`.
    """
    require("langdetect", "telling a language")
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text[:_LANGUAGE_CHARACTERS])
    try:
        code = detector.detect()
    except LangDetectException:
        return None
    return None if code == "unknown" else code


@cache
def _detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()  # one of our own: the package's shared one belongs to whoever else uses it
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def _is_language(found: str, wanted: str) -> bool:
    return found == wanted.lower() or found.split("-")[0] == wanted.lower()


def _check_language(*, language: str, **_: Any) -> None:
    require("langdetect", "the verifier 'language'")
    known = sorted(_detectors().get_lang_list())
    if not any(_is_language(code, language) for code in known):
        raise ValueError(f"got language={language!r} — expected one of {', '.join(known)}")


def _verdict(problem: str | None, success: str) -> Finding:
    return Finding(score=float(problem is None), reason=f"the response {problem or success}")


ROWS: dict[str, VerifierSpec] = {
    "think_format": VerifierSpec(fn=think_format, source="Guo et al. 2025, arXiv:2501.12948"),
    "boxed_format": VerifierSpec(fn=boxed_format),
    "regex": VerifierSpec(fn=regex, check=_check_pattern),
    "json_schema": VerifierSpec(fn=json_schema, check=_check_schema, requires=("jsonschema",)),
    "length": VerifierSpec(fn=length, check=_check_bounds),
    "repetition": VerifierSpec(fn=repetition),
    "language": VerifierSpec(fn=language, check=_check_language, requires=("langdetect",)),
}
