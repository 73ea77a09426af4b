"""Prompts as versioned files, and the strict reading of what a judge says in answer to them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from accord.errors import FeedbackError
from accord.records import Group, Message, Text

FOLDER = Path(__file__).parent / "prompts"
_SECTION = re.compile(r"^--- (system|user|then) ---\n", re.MULTILINE)
_LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_NUMBER = re.compile(r"\[\[\s*([+-]?\d{1,4}(?:\.\d{1,4})?)\s*\]\]")
_ORDER = re.compile(r"\[\[\s*(\d{1,3}(?:\s*>\s*\d{1,3})*)\s*\]\]")
_OBJECT = re.compile(r"\{[^{}]*\}")


class Preferred(Enum):
    """Which of two shown answers a judge preferred, by the place in which it was shown."""

    FIRST = "A"
    SECOND = "B"
    TIE = "C"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation with gaps: a `system` and a `user` turn, and `then`, what is said after the first reply."""

    name: str  # the file's, with its version: "pairwise.v1"
    digest: str  # of the file's bytes, eight hexadecimal digits
    turns: Mapping[str, str]

    @property
    def label(self) -> str:
        """What a judgement records: name, version and digest."""
        return f"{self.name}#{self.digest}"

    def render(self, **values: Any) -> tuple[Message, ...]:
        """Return the opening turns with the gaps filled. Raises FeedbackError for a gap that has no value."""
        return tuple(
            Message(role=role, content=self._fill(role, values)) for role in ("system", "user") if role in self.turns
        )

    def render_then(self, **values: Any) -> Message:
        """Return the turn that follows the first reply."""
        return Message(role="user", content=self._fill("then", values))

    def _fill(self, section: str, values: Mapping[str, Any]) -> str:
        try:
            return _template(self.turns[section]).render(**values).strip()
        except jinja2.TemplateError as error:
            raise FeedbackError(
                f"got a prompt that cannot be filled: {self.name}, section {section} ({error}) — expected gaps among "
                f"{', '.join(sorted(values))} — correct the file"
            ) from error


def load_prompt(name: str | Path) -> Prompt:
    """Return a prompt of Accord's by name ("pairwise.v1"), or one of your own by the path of a `.jinja` file.

    A file is sections that begin with a line `--- system ---`, `--- user ---` or `--- then ---`.
    Raises FeedbackError for a name that is not there and a file without a user section.
    """
    path = Path(name) if str(name).endswith(".jinja") else FOLDER / f"{name}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.jinja")))
        raise FeedbackError(f"got the prompt {str(name)!r} — expected one of {known}, or the path of a .jinja file")
    data = path.read_bytes()
    parts = _SECTION.split(data.decode("utf-8").replace("\r\n", "\n"))
    turns = dict(zip(parts[1::2], parts[2::2], strict=True))
    if "user" not in turns:
        raise FeedbackError(f"got a prompt without a line '--- user ---': {path} — expected one, with what is asked")
    return Prompt(name=path.name.removesuffix(".jinja"), digest=hashlib.sha256(data).hexdigest()[:8], turns=turns)


@cache
def _template(text: str) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One rule of a constitution, as what is asked of a model: to criticise, to revise, to choose."""

    name: str
    critique: str
    revision: str
    choice: str


def load_principles(path: str | Path | None = None) -> tuple[Principle, ...]:
    """Read principles from a YAML list of {name, critique, revision, choice}; None = the ones that come with Accord."""
    path = FOLDER / "principles.v1.yaml" if path is None else Path(path)
    try:
        principles = tuple(Principle(**row) for row in yaml.safe_load(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise FeedbackError(
            f"got principles that cannot be read: {path} ({error}) — expected a YAML list of "
            "name, critique, revision and choice"
        ) from error
    if not principles:
        raise FeedbackError(f"got no principle in {path} — expected at least one")
    return principles


def text_of(text: Text) -> str:
    """Return a text as a judge is shown it: as it is, one lone turn without its role, several with theirs."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in text)


def answer_text(group: Group, index: int) -> str:
    """Return a response as a judge is shown it. Raises FeedbackError for one that is token ids alone."""
    content = group.responses[index].content
    if content is None:
        raise FeedbackError(
            f"got response {index} of {group.origin or 'a group'} as token ids alone — expected text to judge — "
            "decode it first"
        )
    return text_of(content)


def read_verdict(text: str) -> Preferred | None:
    """Return the last [[A]], [[B]] or [[C]], or JSON {"verdict": "A" | "B" | "tie"}; None where there is none."""
    found = [(match.start(), Preferred(match[1])) for match in _LETTER.finditer(text)]
    for place, value in _json_values(text, "verdict"):
        if isinstance(value, str) and value.upper() in ("A", "B", "C", "TIE"):
            found.append((place, Preferred("C" if value.upper() == "TIE" else value.upper())))
    return max(found, key=lambda item: item[0])[1] if found else None


def read_rating(text: str, *, lowest: float = 1, highest: float = 10) -> float | None:
    """Return the last number in [[…]], or JSON {"rating": number}; None where there is none or it is out of range."""
    found = [(match.start(), float(match[1])) for match in _NUMBER.finditer(text)]
    for place, value in _json_values(text, "rating"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((place, float(value)))
    if not found:
        return None
    rating = max(found)[1]
    return rating if lowest <= rating <= highest else None


def read_order(text: str, num_answers: int) -> tuple[int, ...] | None:
    """Return the last [[2 > 1 > 3]] as indices from 0; None unless it names every answer once."""
    found = _ORDER.findall(text)
    if not found:
        return None
    order = tuple(int(number) - 1 for number in found[-1].split(">"))
    return order if sorted(order) == list(range(num_answers)) else None


def _json_values(text: str, key: str) -> Iterator[tuple[int, Any]]:
    for match in _OBJECT.finditer(text):
        try:
            value = json.loads(match[0])
        except ValueError:
            continue
        if isinstance(value, dict) and key in value:
            yield match.start(), value[key]
