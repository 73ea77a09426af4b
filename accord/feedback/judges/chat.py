"""Whom a judge asks: any endpoint or a local policy, behind one small protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accord.endpoint import Endpoint, RequestRefused
from accord.endpoint.client import chat_requests
from accord.errors import FeedbackError
from accord.records import Group, Message, Response

if TYPE_CHECKING:
    from accord.policy.policy import Policy

Conversation = tuple[Message, ...]
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What was said; `text` None = nothing could be had for this conversation alone, for the reason given."""

    text: str | None
    reason: str = ""


class Chat(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """The model's name, as judgements record it."""
        ...

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        """Answer each; another `attempt` draws another answer. Raises FeedbackError where nothing can be asked."""
        ...

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        """Return the log-probability, nats, of each option as the next answer; None = at least one is not known."""
        ...


@dataclass(frozen=True, kw_only=True)
class EndpointChat:
    """A chat over an endpoint. A first attempt has `temperature`, later ones at least `retry_temperature`.

    `options` are added to each request; an option that is None takes a default out
    (`{"max_tokens": None, "max_completion_tokens": 512}`).
    """

    endpoint: Endpoint
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    retry_temperature: float = 0.7  # at temperature 0 another seed would say the same again
    top_logprobs: int = 20
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The endpoint's model."""
        return self.endpoint.settings.model

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        """Answer each; see `Chat`. What the server refuses to take (too long) has no text, unless it refuses all."""
        temperature = self.temperature if attempt == 0 else max(self.temperature, self.retry_temperature)
        found = self._ask(conversations, temperature=temperature, max_tokens=self.max_tokens, seed=self.seed + attempt)
        replies = []
        for answers in found:
            if isinstance(answers, RequestRefused):
                replies.append(Reply(text=None, reason=str(answers)))
            else:
                was_cut = answers[0].finish_reason == "length"
                replies.append(Reply(text=answers[0].text, reason="cut at the token limit" if was_cut else ""))
        return replies

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        """Read the options among the likeliest first tokens, spaces around them left out; needs a server with logprobs.

        Raises FeedbackError where the server gives no log-probabilities at all.
        """
        found = self._ask(
            conversations, temperature=1.0, max_tokens=1, seed=self.seed, logprobs=True, top_logprobs=self.top_logprobs
        )
        read = [None if isinstance(answers, RequestRefused) else answers[0].tokens for answers in found]
        if found and not any(read):
            raise FeedbackError(
                f"got no log-probabilities from {self.endpoint.url} — expected `logprobs` of the first token — "
                "use a server that gives them, or judge by written verdicts (mode verdict)"
            )
        return [_options_among(tokens[0].likeliest, options) if tokens else None for tokens in read]

    def _ask(self, conversations: Sequence[Conversation], **options: Any) -> list[Any]:
        turns = [[{"role": m.role, "content": m.content} for m in conversation] for conversation in conversations]
        found = self.endpoint.ask("/chat/completions", chat_requests(turns, **(options | dict(self.options))))
        refused = [answers for answers in found if isinstance(answers, RequestRefused)]
        if found and len(refused) == len(found):
            raise refused[0]  # it is not the conversation that is wrong
        return found


def _options_among(likeliest: Mapping[str, float], options: Sequence[str]) -> tuple[float, ...] | None:
    masses = [
        math.fsum(math.exp(logp) for text, logp in likeliest.items() if text.strip() == option) for option in options
    ]
    return tuple(math.log(mass) for mass in masses) if all(masses) else None


@dataclass(frozen=True, kw_only=True)
class PolicyChat:
    """A chat with a local policy, sampled from and scored where it is."""

    policy: Policy
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    retry_temperature: float = 0.7
    chat_template: str = "auto"
    batch_size: int = 16  # conversations scored together

    @property
    def name(self) -> str:
        """The policy's path."""
        return self.policy.path or "policy"

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        """Answer each; see `Chat`. A conversation that fills the model's window has no text."""
        ids, window = self._encode(conversations), self._window
        fitting = [index for index, prompt in enumerate(ids) if len(prompt) < window]
        temperature = self.temperature if attempt == 0 else max(self.temperature, self.retry_temperature)
        drawn = self.policy.sample(
            [conversations[index] for index in fitting], max_tokens=self.max_tokens, temperature=temperature,
            seed=self.seed + attempt, chat_template=self.chat_template,
        ) if fitting else []  # fmt: skip
        texts = {index: group.responses[0].content for index, group in zip(fitting, drawn, strict=True)}
        return [
            Reply(text=str(texts[index])) if index in texts else Reply(text=None, reason=_too_long(len(prompt), window))
            for index, prompt in enumerate(ids)
        ]

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        """Score each option as the beginning of the answer, all of its tokens: exact, whatever its rank."""
        import torch

        from accord.data.tokens import TokenGroup, TokenResponse

        tokenizer = self.policy.tokenizer
        choices = tuple(
            TokenResponse(ids=tuple(tokenizer.encode(option, add_special_tokens=False))) for option in options
        )
        longest, window = max(len(choice.ids) for choice in choices), self._window
        groups = [
            TokenGroup(prompt_ids=ids, responses=choices, index=index)
            for index, ids in enumerate(self._encode(conversations))
            if len(ids) + longest <= window
        ]
        found: list[tuple[float, ...] | None] = [None] * len(conversations)
        with torch.no_grad():
            for start in range(0, len(groups), self.batch_size):
                part = groups[start : start + self.batch_size]
                for group, logps_K in zip(part, self.policy.score(part).logps_PK.tolist(), strict=True):
                    found[group.index] = tuple(logps_K)
        return found

    def _encode(self, conversations: Sequence[Conversation]) -> list[tuple[int, ...]]:
        from accord.data import encode_prompts

        asked = [Group(prompt=turns, responses=(Response(token_ids=()),)) for turns in conversations]
        return encode_prompts(asked, self.policy.tokenizer, chat_template=self.chat_template)

    @property
    def _window(self) -> float:
        limit = getattr(self.policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else math.inf


def _too_long(num_tokens: int, window: float) -> str:
    return f"got a conversation of {num_tokens} tokens — expected fewer than the model's {window:g} positions"


def answer_until_read(
    chat: Chat, conversations: Sequence[Conversation], read: Callable[[str], Read | None], *, num_attempts: int
) -> list[tuple[Read | None, str]]:
    """Ask until `read` makes sense of every reply, at most `num_attempts` times; return what was read and the reply.

    What stays unreadable is None, with the last reply's beginning as the reason.
    """
    found: list[tuple[Read | None, str]] = [(None, "not asked")] * len(conversations)
    open_ = list(range(len(conversations)))
    for attempt in range(num_attempts):
        if not open_:
            break
        replies = chat.answer([conversations[index] for index in open_], attempt=attempt)
        unread = []
        for index, reply in zip(open_, replies, strict=True):
            value = None if reply.text is None else read(reply.text)
            found[index] = (value, reply.text or "") if value is not None else (None, _unread(reply))
            if value is None and reply.text is not None:  # what cannot be asked at all is not asked again
                unread.append(index)
        open_ = unread
    return found


def _unread(reply: Reply) -> str:
    if reply.text is None:
        return reply.reason
    cut = f" ({reply.reason})" if reply.reason else ""
    return f"no verdict in the reply{cut}: …{reply.text[-120:]!r}"
