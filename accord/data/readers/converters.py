"""One function per row format: a row in, a `Group` out. Every function raises DataError for a value it cannot take.

`Fields` hands out the columns of a row and remembers which were used; the others travel on in `Group.extra`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.data.readers.cuts import common_turns, cut_common_words, cut_transcript, is_transcript, transcript_turns
from accord.errors import DataError
from accord.records import (
    Comparison,
    Critique,
    Group,
    Judgement,
    Label,
    Message,
    Ranking,
    Rating,
    Response,
    Text,
)

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
STEP_SEPARATOR = "\n"


@dataclass(slots=True)
class Fields:
    """A row being read. `take` returns a column (None when absent) and marks it as used."""

    row: Mapping[str, Any]
    origin: str
    used: set[str] = field(default_factory=set)

    def take(self, *names: str) -> Any:
        """Return the first of these columns that holds a value."""
        self.used.update(names)
        return next((self.row[name] for name in names if self.row.get(name) is not None), None)

    def text(self, *names: str) -> Text:
        """Return a column as plain text or as turns; an absent one is empty."""
        value = self.take(*names)
        if value is None:
            return ""
        if isinstance(value, str):
            value = turns_in_json(value)
        return (
            value
            if isinstance(value, str)
            else tuple(read_message(turn, names[0]) for turn in as_list(value, names[0]) or ())
        )

    def list(self, name: str) -> list[Any]:
        """Return a column that must hold a list (CSV cells hold it as JSON)."""
        value = as_list(self.take(name), name)
        if not value:
            raise DataError(f"got column {name!r} = {shorten(self.row.get(name))} — expected a non-empty list")
        return value

    def group(self, prompt: Text, responses: Sequence[Response], judgements: Sequence[Judgement] = (), **extra: Any):
        """Build the group; `tools` are recognised for every format, unused columns are kept in `extra`."""
        tools = as_list(self.take("tools"), "tools") or []
        if not all(isinstance(tool, Mapping) for tool in tools):
            raise DataError(f"got tools = {shorten(tools)} — expected a list of JSON schemas")
        rest = {name: value for name, value in self.row.items() if name not in self.used and value is not None}
        return Group(
            prompt=prompt,
            responses=tuple(responses),
            judgements=tuple(judgements),
            tools=tuple(tools),
            origin=self.origin,
            extra={**rest, **extra},
        )


def turns_in_json(text: str) -> str | list[Any]:
    """Return the turns a table stored as JSON text; any other text, also other JSON, is text."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in value) else text


def as_list(value: Any, name: str) -> list[Any] | None:
    """Return a list, reading it from JSON when a table stored it as text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"got column {name!r} = {shorten(value)} — expected a list ({error.msg})") from error
    if value is None or value == "":
        return None
    if not isinstance(value, list | tuple):
        raise DataError(f"got column {name!r} = {shorten(value)} — expected a list")
    return list(value)


def read_message(turn: Any, name: str) -> Message:
    """Read {"role", "content", …}, or ShareGPT's {"from", "value"}; text blocks are joined, other blocks refused."""
    if not isinstance(turn, Mapping):
        raise DataError(f"got a turn {shorten(turn)} in column {name!r} — expected an object with role and content")
    role, content = turn.get("role"), turn.get("content")
    if role is None and "from" in turn:
        role, content = SHAREGPT_ROLES.get(turn["from"], turn["from"]), turn.get("value")
    if not isinstance(role, str):
        raise DataError(f"got a turn without a role in column {name!r}: {shorten(turn)} — expected role and content")
    if isinstance(content, list | tuple):
        kinds = {block.get("type") if isinstance(block, Mapping) else type(block).__name__ for block in content}
        if kinds - {"text"}:
            raise DataError(f"got content blocks of type {sorted(map(str, kinds))} in column {name!r} — "
                            "expected text only")  # fmt: skip
        content = "".join(block["text"] for block in content)
    if content is not None and not isinstance(content, str):
        raise DataError(f"got content {shorten(content)} in column {name!r} — expected text")
    known = ("role", "content", "from", "value")
    extra = {key: value for key, value in turn.items() if key not in known and value is not None}
    return Message(role=role, content=content or "", extra=extra)  # calls of tools come with content null


def language_modelling(fields: Fields) -> Group:
    """`text`: the whole text is the response to an empty prompt."""
    return fields.group("", [Response(content=require_text(fields.take("text"), "text"))])


def conversation(fields: Fields) -> Group:
    """`messages`: the prompt is what stands before the first assistant turn, the response is the rest."""
    turns = fields.text("messages", "conversations")
    if not isinstance(turns, tuple) or not turns:
        raise DataError(f"got messages = {shorten(turns)} — expected a non-empty list of turns")
    first = next((position for position, turn in enumerate(turns) if turn.role == "assistant"), None)
    if first is None:
        roles = [turn.role for turn in turns]
        raise DataError(f"got a conversation without an assistant turn (roles {roles}) — nothing could be trained")
    last = max(position for position, turn in enumerate(turns) if turn.role == "assistant")
    return fields.group(turns[:first], [Response(content=turns[first : last + 1])])


def prompt_only(fields: Fields) -> Group:
    """`prompt`: to be sampled from. The one response is an empty place-holder, marked `extra["is_prompt_only"]`."""
    return fields.group(fields.text("prompt"), [Response(content="")], is_prompt_only=True)


def question_answer(fields: Fields) -> Group:
    """`question`, `answer` (as in GSM8K): a user's turn to sample from; the right answer stays in `extra`, to verify.

    To imitate the answers instead, rename the columns to `prompt` and `completion`.
    """
    question = fields.text("question")
    turns = (Message(role="user", content=question),) if isinstance(question, str) else question
    return fields.group(turns, [Response(content="")], is_prompt_only=True)


def prompt_completion(fields: Fields) -> Group:
    """`prompt`, `completion`: a demonstration."""
    prompt, (response,) = align_turns(fields.text("prompt"), [fields.text("completion")])
    return fields.group(prompt, [Response(content=response)])


def unpaired(fields: Fields) -> Group:
    """`prompt`, `completion`, `label`: one response with a thumb up or down."""
    prompt, (response,) = align_turns(fields.text("prompt"), [fields.text("completion")])
    label = Label(response=0, is_desirable=read_bool(fields.take("label"), "label"))
    return fields.group(prompt, [Response(content=response)], [label])


def preference(fields: Fields) -> Group:
    """`prompt`, `chosen`, `rejected`: a pair; `margin` is its strength, `score_chosen/_rejected` are ratings."""
    prompt, contents = align_turns(fields.text("prompt"), [fields.text("chosen"), fields.text("rejected")])
    return _pair(fields, prompt, contents)


def implicit_preference(fields: Fields) -> Group:
    """`chosen`, `rejected`, each with the prompt inside: turns are cut at turns, plain text at words."""
    chosen, rejected = fields.text("chosen"), fields.text("rejected")
    if isinstance(chosen, tuple) != isinstance(rejected, tuple):
        raise DataError("got turns on one side and plain text on the other — expected the same form for both")
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = cut_common_words(chosen, rejected)
        return _pair(fields, chosen[:cut], [chosen[cut:], rejected[cut:]])
    assert isinstance(chosen, tuple)
    assert isinstance(rejected, tuple)
    if not chosen or not rejected:
        raise DataError("got a conversation without turns — expected at least one on both sides")
    shared = common_turns(chosen, rejected)
    # Two ways on after the same prompt (calls of tools, further turns) are a pair; two different questions are not.
    assistants = chosen[shared].role == rejected[shared].role == "assistant"
    facts = {} if assistants else {"prompts_differ": True}
    return _pair(fields, chosen[:shared], [chosen[shared:], rejected[shared:]], **facts)


def hh_transcript(fields: Fields) -> Group:
    r"""`chosen`, `rejected` as "\n\nHuman: …\n\nAssistant: …" transcripts; the prompt ends at the last "Assistant:".

    Where the two prompts differ the group holds the turns they share, its responses the turns after them, and
    `extra["prompts_differ"]` is set; the policy for such rows is the encoder's. A response that runs on into another
    speaker's turn stays as it stands and sets `extra["has_other_speaker"]`.
    """
    sides = []
    for name in ("chosen", "rejected"):
        text = require_text(fields.take(name), name)
        if not is_transcript(text):
            raise DataError(f"got {name} = {shorten(text)} — expected a transcript of '\\n\\nHuman:' and "
                            "'\\n\\nAssistant:' turns")  # fmt: skip
        sides.append(cut_transcript(text))
    (prompt, chosen), (other, rejected) = sides
    facts: dict[str, Any] = {}
    if any("\n\nHuman:" in answer for answer in (chosen, rejected)):
        facts["has_other_speaker"] = True
    if prompt == other:
        answers = [(Message(role="assistant", content=answer),) for answer in (chosen, rejected)]
        return _pair(fields, transcript_turns(prompt), answers, **facts)
    whole = [(*transcript_turns(text), Message(role="assistant", content=answer)) for text, answer in sides]
    shared = common_turns(*whole)
    return _pair(fields, whole[0][:shared], [turns[shared:] for turns in whole], prompts_differ=True, **facts)


def stepwise(fields: Fields) -> Group:
    """`prompt`, `completions`, `labels`: one response of several steps (joined by a line break), a label for each."""
    steps, labels = fields.list("completions"), fields.list("labels")
    if len(steps) != len(labels):
        raise DataError(f"got {len(steps)} completions and {len(labels)} labels — expected one label per step")
    steps = [require_text(step, "completions") for step in steps]
    prompt, (response,) = align_turns(fields.text("prompt"), [STEP_SEPARATOR.join(steps)])
    judgements = [
        Label(response=0, is_desirable=read_bool(label, "labels"), step=number) for number, label in enumerate(labels)
    ]
    return fields.group(prompt, [Response(content=response)], judgements, steps=steps, step_separator=STEP_SEPARATOR)


def ranked(fields: Fields) -> Group:
    """`prompt`, `responses` from best to worst; `ranks` (1 = best, equal = tied) overrides the order."""
    texts = [as_text(value, "responses") for value in fields.list("responses")]
    prompt, contents = align_turns(_prompt(fields), texts)
    ranks = as_list(fields.take("ranks"), "ranks") or list(range(len(contents)))
    return fields.group(prompt, [Response(content=content) for content in contents], [read_ranking(ranks, len(texts))])


def ranked_answers(fields: Fields) -> Group:
    """`prompt`, `answers` = objects with `answer` (or `text`, …), `rank` and perhaps `model` (as in Nectar)."""
    entries = read_entries(fields.list("answers"), "answers")
    contents = [read_entry_text(entry, "answers") for entry in entries]
    prompt, contents = align_turns(_prompt(fields), contents)
    ranking = read_ranking([entry.get("rank") for entry in entries], len(entries))
    responses = [
        Response(content=content, source=entry.get("model")) for content, entry in zip(contents, entries, strict=True)
    ]
    return fields.group(prompt, responses, [ranking])


def scored(fields: Fields) -> Group:
    """`prompt`, `responses`, `scores`: a number for each response."""
    texts = [as_text(value, "responses") for value in fields.list("responses")]
    scores = fields.list("scores")
    if len(scores) != len(texts):
        raise DataError(f"got {len(texts)} responses and {len(scores)} scores — expected one score per response")
    prompt, contents = align_turns(_prompt(fields), texts)
    ratings = [
        Rating(response=index, value=value)
        for index, score in enumerate(scores)
        if (value := read_number(score, "scores")) is not None
    ]
    return fields.group(prompt, [Response(content=content) for content in contents], ratings)


def scored_completions(fields: Fields) -> Group:
    """`prompt` or `instruction`, `completions` = objects with `response` and scores (as in UltraFeedback).

    `overall_score` (or `score`, `rating`) becomes the rating "overall", `fine-grained_score` "fine_grained", each of
    `annotations` its own attribute, `critique` a critique. "N/A" is no rating.
    """
    entries = read_entries(fields.list("completions"), "completions")
    prompt, contents = align_turns(_prompt(fields), [read_entry_text(entry, "completions") for entry in entries])
    responses, judgements = [], []
    for index, (entry, content) in enumerate(zip(entries, contents, strict=True)):
        responses.append(Response(content=content, source=entry.get("model")))
        for attribute, raw in _scores(entry):
            value = read_number(raw, attribute)
            if value is not None:
                judgements.append(Rating(response=index, value=value, attribute=attribute))
        if isinstance(entry.get("critique"), str) and entry["critique"].strip():
            judgements.append(Critique(response=index, text=entry["critique"]))
    return fields.group(prompt, responses, judgements)


def _scores(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    overall = next((entry[name] for name in ("overall_score", "score", "rating") if entry.get(name) is not None), None)
    found = [("overall", overall), ("fine_grained", entry.get("fine-grained_score"))]
    for attribute, annotation in (entry.get("annotations") or {}).items():
        if isinstance(annotation, Mapping):
            found.append((attribute, annotation.get("Rating", annotation.get("rating"))))
        elif isinstance(annotation, int | float):
            found.append((attribute, annotation))
    return [(attribute, raw) for attribute, raw in found if raw is not None]


def _pair(fields: Fields, prompt: Text, contents: Sequence[Text], **facts: Any) -> Group:
    strength = read_number(fields.take("margin"), "margin")
    judgements: list[Judgement] = [Comparison(better=0, worse=1, strength=strength)]
    for index, name in enumerate(("score_chosen", "score_rejected")):
        value = read_number(fields.take(name), name)
        if value is not None:
            judgements.append(Rating(response=index, value=value))
    return fields.group(prompt, [Response(content=content) for content in contents], judgements, **facts)


def _prompt(fields: Fields) -> Text:
    """A prompt column of ranked and scored lists, which some files store as a transcript that ends in "Assistant:"."""
    prompt = fields.text("prompt", "instruction")
    if isinstance(prompt, str) and is_transcript(prompt) and cut_transcript(prompt)[1].strip() == "":
        return transcript_turns(cut_transcript(prompt)[0])
    return prompt


def align_turns(prompt: Text, responses: Sequence[Text]) -> tuple[Text, list[Text]]:
    """Give prompt and responses the same form, plain or turns, and take a repeated prompt off the responses' front."""
    if isinstance(prompt, str) and not any(isinstance(response, tuple) for response in responses):
        return prompt, list(responses)
    turns = [(Message(role="assistant", content=item),) if isinstance(item, str) else item for item in responses]
    if isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),) if prompt else ()
        if len(prompt) == 1 and all(prompt[0] in response for response in turns):  # perhaps after a system turn
            prompt = turns[0][: turns[0].index(prompt[0]) + 1]
    turns = [response[len(prompt) :] if response[: len(prompt)] == prompt else response for response in turns]
    if not all(turns):
        raise DataError("got a response without turns — expected at least one assistant turn after the prompt")
    return prompt, list(turns)


def read_ranking(ranks: Sequence[Any], count: int) -> Ranking:
    """Turn ranks (1 = best, equal = tied) into tiers from best to worst."""
    if len(ranks) != count:
        raise DataError(f"got {count} responses and {len(ranks)} ranks — expected one rank per response")
    values = [value for rank in ranks if (value := read_number(rank, "rank")) is not None]
    if len(values) != count:
        raise DataError(f"got ranks {shorten(list(ranks))} — expected a number for every response")
    tiers = [tuple(i for i, value in enumerate(values) if value == rank) for rank in sorted(set(values))]
    return Ranking(order=tuple(tiers))


def read_entries(values: Sequence[Any], name: str) -> list[Mapping[str, Any]]:
    """Check that a list column holds objects."""
    for value in values:
        if not isinstance(value, Mapping):
            raise DataError(f"got {shorten(value)} in column {name!r} — expected objects with a text and its scores")
    return list(values)


def read_entry_text(entry: Mapping[str, Any], name: str) -> Text:
    """Return the text of one entry of a ranked or scored list."""
    for key in ("response", "answer", "text", "content", "completion"):
        if entry.get(key) is not None:
            return as_text(entry[key], name)
    raise DataError(f"got an entry of {name!r} with {sorted(entry)} — expected one of response, answer, text, content")


def as_text(value: Any, name: str) -> Text:
    """Return a value as plain text or turns."""
    if isinstance(value, list | tuple):
        return tuple(read_message(turn, name) for turn in value)
    return require_text(value, name)


def require_text(value: Any, name: str) -> str:
    """Return a value that must be text."""
    if not isinstance(value, str):
        raise DataError(f"got column {name!r} = {shorten(value)} — expected text")
    return value


def read_bool(value: Any, name: str) -> bool:
    """Read true/false as a boolean, 0/1, ±1 or the words; anything else is refused, never guessed."""
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "-1": False}
    answer = words.get(str(value).strip().lower())
    if answer is None:
        raise DataError(f"got column {name!r} = {shorten(value)} — expected true or false")
    return answer


def read_number(value: Any, name: str) -> float | None:
    """Read a number; None, an empty cell and "N/A" are no number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "n/a", "na", "none")):
        return None
    try:
        number = float(value)
        return None if math.isnan(number) else number  # tables write a missing number as NaN
    except (TypeError, ValueError) as error:
        raise DataError(f"got {name} = {shorten(value)} — expected a number") from error


def shorten(value: Any, length: int = 60) -> str:
    """Show a value in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
