"""Turns to text, cut into what is given and what is trained; each boundary is known because the text was built there.

A conversation is rendered up to each assistant turn (with the generation prompt) and including it. The first must be
the front of the second, else the template is refused: guessing by searching for markers would train the wrong tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from accord.errors import ConfigError, DataError
from accord.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Works with any vocabulary: no special token, and a response that begins with a space like the words before it.
TRANSCRIPT = (
    "{% for turn in messages %}"
    "{% if turn.role == 'system' and loop.first %}{{ turn.content }}"
    "{% else %}"
    "{{ '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant'}.get(turn.role, turn.role | capitalize) + ':' }}"
    "{{ ' ' + turn.content if turn.content else '' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
BUILT_IN = {"transcript": TRANSCRIPT}
_BATCH = 2000  # texts per call: large enough for the tokenizer to use its threads, small enough for memory


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a response's text, tokenised by itself so that no token crosses its ends."""

    text: str
    is_trained: bool = True
    ends_step: bool = False  # of a response whose steps were judged one by one


@dataclass(frozen=True, slots=True)
class RenderedGroup:
    """A prompt's text and its responses' segments; `ends_turn` where the template itself closed the last turn."""

    prompt: str
    responses: tuple[tuple[Segment, ...], ...]
    ends_turn: tuple[bool, ...]


class Renderer:
    """A chat template bound to a tokenizer.

    `chat_template`: "auto" (the tokenizer's own, else "transcript"), "own", "transcript", a Jinja text or the path of
    a `.jinja` file. `train_turns`: "all" assistant turns of a response, or the "last" one only.
    Raises ConfigError for an unknown name and DataError when "own" is asked of a tokenizer that has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str = "auto",
        *,
        train_turns: Literal["all", "last"] = "all",
    ) -> None:
        self._tokenizer = tokenizer
        self._train_turns = train_turns
        has_own = bool(tokenizer.chat_template)
        self.is_fallback = chat_template == "auto" and not has_own
        self.is_own = has_own and chat_template in ("auto", "own")
        if chat_template == "own" and not has_own:
            raise DataError(
                "got a tokenizer without a chat template, and template.chat=own — "
                "set template.chat=transcript, or give a Jinja text or file"
            )
        self._template = None if self.is_own else _find_template("transcript" if self.is_fallback else chat_template)
        self.name = "own" if self.is_own else next((k for k, v in BUILT_IN.items() if v == self._template), "custom")
        tokens = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
        self._terminators = tuple(token for token in tokens if token.strip())

    def render(
        self,
        turns: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text. Raises DataError when the template refuses it."""
        conversation = [{**turn.extra, "role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **(variables or {}),
            )
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(f"the chat template ({self.name}) refuses the turns {roles}: {error}") from error
        assert isinstance(text, str)
        return text

    def render_group(
        self,
        prompt: Sequence[Message],
        responses: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedGroup:
        """Render a prompt once and each response after it, with every assistant turn and its end mark trained.

        White space after an end mark belongs to the next turn: a sampler stops at the mark. What follows the last
        trained turn is left out. Raises DataError when the template does not keep a conversation's front unchanged.
        """
        prompt = tuple(prompt)

        def text(turns: Sequence[Message], is_open: bool) -> str:
            return self.render(turns, add_generation_prompt=is_open, tools=tools, variables=variables)

        is_open = all(not turns or turns[0].role == "assistant" for turns in responses)
        prompt_text = text(prompt, is_open)
        segments, ends = [], []
        for turns in responses:
            pieces, done = [], prompt_text
            for offset in self._trained_turns(turns):
                if offset or not is_open:
                    before = text((*prompt, *turns[:offset]), True)
                    pieces.append(Segment(self._rest(done, before), is_trained=False))
                    done = before
                turn = self._cut_after_mark(self._rest(done, text((*prompt, *turns[: offset + 1]), False)))
                pieces.append(Segment(turn))
                done += turn
            segments.append(tuple(piece for piece in pieces if piece.text))
            ends.append(bool(pieces) and pieces[-1].text.endswith(self._terminators))
        return RenderedGroup(prompt_text, tuple(segments), tuple(ends))

    def _trained_turns(self, turns: Sequence[Message]) -> list[int]:
        offsets = [offset for offset, turn in enumerate(turns) if turn.role == "assistant"]
        return offsets[-1:] if self._train_turns == "last" else offsets

    def _cut_after_mark(self, text: str) -> str:
        core = text.rstrip()
        return core if core.endswith(self._terminators) else text

    def _rest(self, front: str, whole: str) -> str:
        if whole.startswith(front):
            return whole[len(front) :]
        same = next((i for i, (a, b) in enumerate(zip(front, whole, strict=False)) if a != b), len(whole))
        raise DataError(
            f"the chat template ({self.name}) rewrites earlier text when a turn is added: "
            f"…{front[max(same - 20, 0) : same + 30]!r} became …{whole[max(same - 20, 0) : same + 30]!r}, so it cannot "
            "be known which tokens are trained — set template.train_turns=last for conversations of several turns, or "
            "another template.chat (transcript, or a Jinja file)"
        )


def _find_template(name: str) -> str:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if "{{" in name or "{%" in name:
        return name
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise ConfigError(f"got template.chat={name!r} — no such file")
        return Path(name).read_text(encoding="utf-8")
    known = ["auto", "own", *BUILT_IN]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"got template.chat={name!r} — {hint}expected one of {', '.join(known)}, a Jinja text or file")


class Vocabulary:
    """A tokenizer that encodes pieces of a text one by one, so that concatenating them is the whole.

    Vocabularies that put a space before every text (SentencePiece's habit) would put one at each boundary; there a
    continuation is encoded behind a line break, whose ids are taken off again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._guard: list[int] = []
        glued = tokenizer.decode(self._encode(["a"])[0] + self._encode(["b"])[0])
        if isinstance(glued, str) and glued.strip() != "ab":
            self._guard = self._encode(["\n"])[0]
        by_itself = tokenizer("a")["input_ids"]
        self.bos_id: int | None = _one_id(tokenizer.bos_token_id)
        self.eos_id: int | None = _one_id(tokenizer.eos_token_id)
        self.adds_bos = isinstance(by_itself, list) and bool(by_itself) and by_itself[0] == self.bos_id

    def encode_all(self, starts: Iterable[str], continuations: Iterable[str]) -> dict[tuple[str, bool], list[int]]:
        """Encode distinct texts in batches; the keys are (text, is it a continuation?)."""
        ids: dict[tuple[str, bool], list[int]] = {}
        for texts, is_continuation in ((dict.fromkeys(starts), False), (dict.fromkeys(continuations), True)):
            todo = list(texts)
            for first in range(0, len(todo), _BATCH):
                batch = todo[first : first + _BATCH]
                encoded = self._encode_guarded(batch) if is_continuation and self._guard else self._encode(batch)
                ids.update(((text, is_continuation), value) for text, value in zip(batch, encoded, strict=True))
        return ids

    def _encode_guarded(self, texts: list[str]) -> list[list[int]]:
        count, result = len(self._guard), []
        for text, ids in zip(texts, self._encode(["\n" + text for text in texts]), strict=True):
            if ids[:count] != self._guard:
                raise DataError(f"the tokenizer merges a line break with what follows ({text[:30]!r}) and puts a space "
                                "before every text, so a response cannot be encoded by itself")  # fmt: skip
            result.append(ids[count:])
        return result

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids = encoded["input_ids"]
        assert isinstance(ids, list)
        return ids


def _one_id(value: Any) -> int | None:
    return value if isinstance(value, int) else None
