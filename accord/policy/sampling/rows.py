"""The rows being continued: where each ends, what was drawn for it, and the responses made of that.

A row is one response to one prompt. What is drawn is kept a step at a time (B ids of B rows) and sorted by row at the
end, so that no step does anything per row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from accord.data import TokenGroup, encode_groups
from accord.errors import DataError, PolicyError
from accord.policy.policy import Policy
from accord.policy.sampling.protocol import SamplingSettings
from accord.records import FinishReason, Group, Message, Response

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Prompt:
    """A prompt on its way: how many of its responses have begun and ended, and what its prefill left."""

    index: int  # its place in the call
    ids: tuple[int, ...]
    stream: int
    room: int  # most tokens of a response
    is_shared: bool = False  # its keys and values are kept once and not copied into its rows
    num_begun: int = 0
    num_running: int = 0
    logits_V: Tensor | None = None  # of the first token; None = not prefilled, or no longer needed
    cache: object = None  # the decoder's


def window(policy: Policy) -> int:
    """Positions the model was made for; models that set no limit get none."""
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize


def check_prompts(policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
    """Raise PolicyError for a prompt that is empty or fills the model's window."""
    limit = window(policy)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise PolicyError(f"prompt {index} has no tokens — give at least a start token")
        if len(prompt) >= limit:
            raise PolicyError(
                f"got prompt {index} of {len(prompt)} tokens — expected fewer than the model's {limit} positions"
            )


def stop_ids(policy: Policy, chat_template: str = "auto") -> frozenset[int]:
    """Every id that ends a response: the tokenizer's, all of the generation config, and the template's end of turn."""
    listed = getattr(policy.causal_lm.generation_config, "eos_token_id", None)
    ids = [policy.tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return frozenset(i for i in ids if isinstance(i, int)) | _ends_of_turn(policy, chat_template)


def trained_ends(groups: Iterable[TokenGroup]) -> frozenset[int]:
    """The ids at which encoded responses end: what training on them teaches a model to stop with."""
    return frozenset(response.ids[-1] for group in groups for response in group.responses if response.has_eos)


_CONVERSATION = Group(
    prompt=(Message(role="user", content="a"),),
    responses=(Response(content=(Message(role="assistant", content="b"),)),),
)


def _ends_of_turn(policy: Policy, chat_template: str) -> frozenset[int]:
    """What the template closes an answer with: <|im_end|> is often not the tokenizer's end of sequence."""
    tokenizer = policy.tokenizer
    name = (chat_template, str(tokenizer.chat_template), len(tokenizer), tokenizer.eos_token_id)
    known = _KNOWN_ENDS.setdefault(tokenizer, {})
    if name not in known:
        try:
            encoded = encode_groups([_CONVERSATION], tokenizer, chat_template=chat_template, append_eos="never")
        except DataError:  # a template that cannot be trained on teaches no end; who trains on it is told
            return frozenset()
        known[name] = trained_ends(encoded.groups)
    return known[name]


# finding them takes as long as ten tokens of a small model
_KNOWN_ENDS: WeakKeyDictionary[object, dict[object, frozenset[int]]] = WeakKeyDictionary()


@dataclass(slots=True)
class Drawn:
    """Everything drawn in one call, in the order it was drawn."""

    policy: Policy
    settings: SamplingSettings
    ends: frozenset[int]
    rows: list[Ints] = field(default_factory=list)
    ids: list[Ints] = field(default_factory=list)
    logps: list[NDArray[np.float64]] = field(default_factory=list)
    _tails: dict[int, list[int]] = field(default_factory=dict)  # last ids of a row, where there are stop strings

    def add(self, rows_B: Ints, ids_B: Ints, logps_B: NDArray[np.float64], count_B: Ints) -> None:
        """Keep one token of each row; `count_B` is the tokens drawn before it."""
        if not np.isfinite(logps_B).all():
            first = int(count_B[~np.isfinite(logps_B)][0])
            raise PolicyError(
                f"{type(self.policy.causal_lm).__name__} gave logits that are not numbers, at token {first + 1} of "
                "a response — look at its weights, or raise the precision"
            )
        self.rows.append(rows_B.copy())
        self.ids.append(ids_B)
        self.logps.append(logps_B)

    def stopped_by_text(self, rows_B: Ints, ids_B: Ints, count_B: Ints) -> NDArray[np.bool_]:
        """Whether each row's text, its newest token included, contains a stop string now (no sooner than min_tokens).

        Looks at the last tokens only, as many as the string can reach over: a token is at least one byte, unless it
        is a special one and no text at all.
        """
        stop = self.settings.stop
        reach = max(len(text.encode()) for text in stop) + 4
        found_B = np.zeros(len(rows_B), dtype=bool)
        for place, (row, token, count) in enumerate(
            zip(rows_B.tolist(), ids_B.tolist(), count_B.tolist(), strict=True)
        ):
            tail = self._tails.setdefault(row, [])
            tail.append(token)
            del tail[:-reach]
            if count + 1 >= self.settings.min_tokens:
                text = str(self.policy.tokenizer.decode(tail, skip_special_tokens=True))
                found_B[place] = any(wanted in text for wanted in stop)
            if found_B[place]:
                del self._tails[row]
        return found_B

    def responses(self, num_rows: int) -> list[Response]:
        """Return every row's response, by row."""
        rows_N = np.concatenate(self.rows)
        order_N = np.argsort(rows_N, kind="stable")
        bounds = np.cumsum(np.bincount(rows_N, minlength=num_rows))[:-1]
        ids = [part.tolist() for part in np.split(np.concatenate(self.ids)[order_N], bounds)]
        logps = [part.tolist() for part in np.split(np.concatenate(self.logps)[order_N], bounds)]
        has_stopped = [row[-1] in self.ends for row in ids]
        # the mark of the end is no part of the text, also where the tokenizer does not call it special
        shown = [row[:-1] if stopped else row for row, stopped in zip(ids, has_stopped, strict=True)]
        texts = self.policy.tokenizer.batch_decode(shown, skip_special_tokens=True)
        return [self._response(*parts) for parts in zip(ids, logps, texts, has_stopped, strict=True)]

    def _response(self, ids: list[int], logps: list[float], text: str, has_stopped: bool) -> Response:
        cuts = [at for wanted in self.settings.stop if (at := text.find(wanted)) >= 0]
        return Response(
            content=text[: min(cuts)] if cuts else text,
            token_ids=tuple(ids),
            finish_reason=FinishReason.STOP if has_stopped or cuts else FinishReason.LENGTH,
            behaviour_logps=tuple(logps),
            source=self.policy.path or None,
        )
