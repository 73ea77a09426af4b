"""Groups to token groups: token ids by construction, and a counted policy for every awkward row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from accord.data.policies import (
    COUNTS,
    Dropped,
    EncodedData,
    EncodeOptions,
    is_blank,
    is_prompt_only,
    select_responses,
)
from accord.data.steps import cut_at_steps
from accord.data.templates import RenderedGroup, Renderer, Segment, Vocabulary
from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import ConfigError, DataError
from accord.records import Comparison, FinishReason, Group, Message, Ranking, Rating, Response, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_groups(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    options: EncodeOptions | None = None,
    **changes: Any,
) -> EncodedData:
    """Encode groups in batches; `changes` are single fields of `EncodeOptions`, e.g. `max_tokens=1024`.

    Prompt and responses are encoded apart and concatenated, so no token crosses the boundary and the prompt's ids do
    not depend on a response. Sampled `token_ids` are taken as they are. `TokenGroup.index` is the position in
    `groups`, whatever was dropped; `source` is the group as encoded (fewer responses where some were dropped).
    Raises DataError naming the row where a policy says "error", where a conversation cannot be rendered, and where
    the tokenizer has no EOS or no start token and one is needed.
    """
    encoder = _Encoder(tokenizer, _options(options, changes))
    plans = [plan for index, group in enumerate(groups) if (plan := encoder.plan(index, group)) is not None]
    ids = encoder.encode_texts(plans)
    encoded = [group for plan in plans if (group := encoder.assemble(plan, ids)) is not None]
    return encoder.finish(len(groups), encoded)


def encode_group(
    group: Group, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions | None = None, **changes: Any
) -> TokenGroup:
    """Encode one group; as `encode_groups`, and raises DataError with the reason where a policy drops it."""
    data = encode_groups([group], tokenizer, options, **changes)
    if data.dropped:
        raise DataError(f"{group.origin or 'the group'}: dropped: {data.dropped[0].reason}")
    return data.groups[0]


def encode_prompts(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions | None = None, **changes: Any
) -> list[tuple[int, ...]]:
    """Return the prompts' ids alone, ready to be sampled from: the very ids `encode_groups` gives (never cut)."""
    encoder = _Encoder(tokenizer, _options(options, changes))
    plans = []
    for index, group in enumerate(groups):
        has_turns = isinstance(group.prompt, tuple)
        bare = replace(group, responses=(Response(token_ids=()),), judgements=())
        try:
            plans.append(_Plan(index, bare, encoder.render(bare, has_turns), has_turns))
        except _TemplateError as error:
            raise DataError(f"{group.origin or 'a group'}: {error}") from error
    ids = encoder.encode_texts(plans)
    return [encoder.prompt_ids(plan, ids) for plan in plans]


def _options(options: EncodeOptions | None, changes: dict[str, Any]) -> EncodeOptions:
    known = [item.name for item in fields(EncodeOptions)]
    for name in changes:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(f"got unknown setting {name!r} — {f'did you mean {near[0]!r}? ' if near else ''}"
                              f"known: {', '.join(known)}")  # fmt: skip
    return replace(options or EncodeOptions(), **changes)


class _Drop(Exception):
    """Control flow inside this module: leave this group out, for this reason."""


Ids = dict[tuple[str, bool], list[int]]  # (text, is it a continuation?) → ids


@dataclass(frozen=True, slots=True)
class _Plan:
    """A group on its way: its text rendered, its ids not yet known."""

    index: int
    group: Group
    rendered: RenderedGroup
    has_turns: bool

    def keys(self, position: int) -> list[tuple[str, bool]]:
        """The texts of one response; the first of them starts the sequence where the prompt is empty."""
        segments = self.rendered.responses[position]
        return [(segment.text, number > 0 or bool(self.rendered.prompt)) for number, segment in enumerate(segments)]


class _Encoder:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.vocabulary = Vocabulary(tokenizer)
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.dropped: list[Dropped] = []
        self.truncated: set[int] = set()
        self.renderer: Renderer | None = None  # made when the first conversation asks for it

    def plan(self, index: int, group: Group) -> _Plan | None:
        """Apply the policies that look at records, then render; None where the group is dropped."""
        try:
            if is_prompt_only(group):
                self.counts["prompt_only"] += 1
                raise _Drop("prompt only: nothing to train")
            if group.extra.get("prompts_differ"):
                self.counts["prompt_mismatches"] += 1
                self.obey(
                    self.options.on_prompt_mismatch, group, "the prompts of the pair differ", "data.on_prompt_mismatch"
                )
                if not group.prompt:
                    raise _Drop("the prompts of the pair differ from the first turn on")
            group = self.without_empty(group)
            read = [response.content for response in group.responses if response.token_ids is None]
            has_turns = any(isinstance(text, tuple) for text in (group.prompt, *read))
            try:
                return _Plan(index, group, self.with_steps(self.render(group, has_turns), group), has_turns)
            except _TemplateError as error:
                self.counts["template_errors"] += 1
                reason = f"{error} — or set template.on_error=drop to leave such rows out"
                self.obey(self.options.on_template_error, group, reason, None, "the chat template refuses the turns")
        except _Drop as drop:
            self.dropped.append(Dropped(index, group.origin, str(drop)))
        return None

    def obey(self, policy: str, group: Group, reason: str, setting: str | None, label: str = "") -> None:
        """Drop, raise or go on, as the policy says."""
        if policy == "error":
            hint = f" — correct the row, or set {setting} to another policy" if setting else ""
            raise DataError(f"{group.origin or 'a group'}: {reason}{hint}")
        if policy == "drop":
            raise _Drop(label or reason)

    def without_empty(self, group: Group) -> Group:
        """Leave empty responses out, as `on_empty` says."""
        keep = [position for position, response in enumerate(group.responses) if not is_blank(response)]
        empty = len(group.responses) - len(keep)
        self.counts["empty_responses"] += empty
        if empty == 0 or self.options.on_empty == "keep":
            return group
        if self.options.on_empty == "error":
            self.obey("error", group, "got an empty response", "data.on_empty")
        return self.select(group, keep, "empty response")

    def select(self, group: Group, keep: Sequence[int], reason: str) -> Group:
        """Keep some responses; the group is dropped where nothing is left to learn."""
        self.counts["responses_dropped"] += len(group.responses) - len(keep)
        selected = select_responses(group, keep)
        if selected is None:
            raise _Drop(reason)
        return selected

    def render(self, group: Group, has_turns: bool) -> RenderedGroup:
        """Turn prompt and responses into text; sampled ids have no text."""
        if not has_turns:
            assert isinstance(group.prompt, str)
            texts = ["" if r.token_ids is not None else r.content for r in group.responses]
            pieces = tuple((Segment(text),) if isinstance(text, str) and text else () for text in texts)
            return RenderedGroup(group.prompt, pieces, (False,) * len(pieces))
        if self.renderer is None:
            options = self.options
            self.renderer = Renderer(self.tokenizer, options.chat_template, train_turns=options.train_turns)
        turns = [() if r.token_ids is not None else _as_turns(r.content or "", "assistant") for r in group.responses]
        variables = group.extra.get("chat_template_kwargs") or {}
        try:
            return self.renderer.render_group(
                _as_turns(group.prompt, "user"), turns, tools=group.tools, variables=variables
            )
        except DataError as error:
            raise _TemplateError(str(error)) from error

    def with_steps(self, rendered: RenderedGroup, group: Group) -> RenderedGroup:
        """Cut responses whose steps were judged at the ends of the steps."""
        try:
            return cut_at_steps(rendered, group)
        except DataError as error:
            raise DataError(f"{group.origin or 'a group'}: {error}") from error

    def encode_texts(self, plans: Sequence[_Plan]) -> Ids:
        """Encode every distinct text once, in batches."""
        keys = [(plan.rendered.prompt, False) for plan in plans if plan.rendered.prompt]
        keys += [key for plan in plans for position in range(len(plan.group.responses)) for key in plan.keys(position)]
        starts = [text for text, is_continuation in keys if not is_continuation]
        return self.vocabulary.encode_all(starts, [text for text, is_continuation in keys if is_continuation])

    def prompt_ids(self, plan: _Plan, ids: Ids) -> tuple[int, ...]:
        """The prompt's ids with exactly one start token where the rule asks for one; never empty."""
        bos_id, text = self.vocabulary.bos_id, plan.rendered.prompt
        found = ids[text, False] if text else []
        is_own = plan.has_turns and self.renderer is not None and self.renderer.name != "transcript"
        wants_bos = self.options.add_bos == "always" or (
            self.options.add_bos == "auto" and self.vocabulary.adds_bos and not is_own
        )
        if wants_bos and bos_id is None:
            raise DataError("got template.add_bos=always and a tokenizer without a BOS token — set it to auto")
        if wants_bos and found[:1] != [bos_id]:
            found = [bos_id, *found]  # type: ignore[list-item]  # not None: refused above
        if not found:
            start = bos_id if bos_id is not None else self.vocabulary.eos_id
            if start is None:
                raise DataError(f"{plan.group.origin or 'a group'}: got an empty prompt and a tokenizer with neither "
                                "BOS nor EOS — the first token needs something to be predicted from: give the "
                                "tokenizer a bos_token, or the row a prompt")  # fmt: skip
            found = [start]
        return tuple(found)

    def assemble(self, plan: _Plan, ids: Ids) -> TokenGroup | None:
        """Concatenate the ids, then apply the policies that look at ids; None where the group is dropped."""
        group = plan.group
        try:
            responses = [self.response(plan, position, ids) for position in range(len(group.responses))]
            whole = self.prompt_ids(plan, ids)
            prompt_ids, responses = self.fit(group, whole, responses)
            if len(prompt_ids) < len(whole) or any(response.was_truncated for response in responses):
                self.truncated.add(plan.index)
            keep = [position for position, response in enumerate(responses) if response.num_trained]
            if len(keep) < len(responses):
                group = self.select(group, keep, "no trained token is left")
                responses = [responses[position] for position in keep]
            keep = self.distinct(group, responses)
            if len(keep) < len(responses):
                group = self.select(group, keep, "identical responses")
                responses = [responses[position] for position in keep]
        except _Drop as drop:
            self.dropped.append(Dropped(plan.index, group.origin, str(drop)))
            return None
        return TokenGroup(
            prompt_ids=prompt_ids,
            responses=tuple(responses),
            judgements=group.judgements,
            index=plan.index,
            source=group,
        )

    def response(self, plan: _Plan, position: int, ids: Ids) -> TokenResponse:
        """One response's ids, with its end of sequence by rule; sampled ids as they are."""
        given, eos_id = plan.group.responses[position], self.vocabulary.eos_id
        if given.token_ids is not None:
            self.counts["sampled"] += 1
            stopped = given.finish_reason is FinishReason.STOP or given.token_ids[-1:] == (eos_id,)
            return TokenResponse(ids=given.token_ids, has_eos=stopped, weights=given.token_weights)
        found: list[int] = []
        is_trained: list[bool] = []
        step_ends: list[int] = []
        for key, segment in zip(plan.keys(position), plan.rendered.responses[position], strict=True):
            found += ids[key]
            is_trained += [segment.is_trained] * len(ids[key])
            step_ends += [max(0, len(found) - 1)] if segment.ends_step else []
        has_eos = plan.rendered.ends_turn[position]
        if has_eos:
            self.counts["eos_from_template"] += 1
            self.counts["end_is_not_eos"] += found[-1:] != [eos_id]
        elif eos_id is not None and found[-1:] == [eos_id]:
            has_eos = True
            self.counts["eos_in_text"] += 1
        elif self.options.append_eos == "auto":
            if eos_id is None:
                raise DataError(f"{plan.group.origin or 'a group'}: got a tokenizer without an EOS token, so the model "
                                "would never learn to stop — give the tokenizer an eos_token, or accept it by "
                                "template.append_eos=never")  # fmt: skip
            found, is_trained, has_eos = [*found, eos_id], [*is_trained, True], True
            self.counts["eos_appended"] += 1
        trained = None if all(is_trained) else tuple(is_trained)
        if step_ends:
            step_ends[-1] = len(found) - 1  # an appended end of sequence closes the last step
        return TokenResponse(ids=tuple(found), is_trained=trained, has_eos=has_eos, step_ends=tuple(step_ends))

    def fit(
        self, group: Group, prompt: tuple[int, ...], responses: list[TokenResponse]
    ) -> tuple[tuple[int, ...], list[TokenResponse]]:
        """Cut prompt and responses to `max_tokens`, as `on_too_long` says."""
        limit, policy = self.options.max_tokens, self.options.on_too_long
        longest = max(len(response.ids) for response in responses)
        if limit is None or len(prompt) + longest <= limit:
            return prompt, responses
        self.counts["too_long"] += 1
        size = f"{len(prompt)} prompt + {longest} response tokens exceed max_tokens={limit}"
        self.obey(policy, group, f"got too long a row: {size}", "data.on_too_long", "too long")
        room = len(prompt) if policy == "truncate_response" else max(limit - longest, min(len(prompt), limit // 2))
        if policy == "truncate_prompt":
            room = limit - longest
        if room < 1 or room >= limit:
            raise _Drop(f"too long for {policy}: the {'response' if room < 1 else 'prompt'} alone exceeds max_tokens")
        if room < len(prompt):
            self.counts["prompts_truncated"] += 1
            start = prompt[:1] if room > 1 and prompt[0] == self.vocabulary.bos_id else ()
            prompt = start + prompt[len(prompt) - room + len(start) :]
        return prompt, [self.cut(response, limit - len(prompt)) for response in responses]

    def cut(self, response: TokenResponse, room: int) -> TokenResponse:
        """Cut a response from the right; what is cut has no end of sequence."""
        if len(response.ids) <= room:
            return response
        self.counts["responses_truncated"] += 1
        trained = None if response.is_trained is None else response.is_trained[:room]
        return TokenResponse(
            ids=response.ids[:room],
            is_trained=trained,
            was_truncated=True,
            weights=None if response.weights is None else response.weights[:room],
            step_ends=tuple(end for end in response.step_ends if end < room),
        )

    def distinct(self, group: Group, responses: Sequence[TokenResponse]) -> list[int]:
        """Which responses to keep: the first of those with equal ids, in a group that was compared or ranked.

        Equal samples of a rated group are no fault: they are what the policy says often.
        """
        first: dict[tuple[int, ...], int] = {}
        keep = [i for i, response in enumerate(responses) if first.setdefault(response.ids, i) == i]
        was_compared = any(isinstance(j, Ranking) or (isinstance(j, Comparison) and not j.is_tie)
                           for j in group.judgements)  # fmt: skip
        if len(keep) == len(responses) or not was_compared:
            return list(range(len(responses)))
        self.counts["identical"] += 1
        if self.options.on_identical == "error":
            self.obey("error", group, "got identical responses in a comparison", "data.on_identical")
        return keep if self.options.on_identical == "drop" else list(range(len(responses)))

    def finish(self, num_read: int, encoded: list[TokenGroup]) -> EncodedData:
        """Close the account."""
        responses = [response for group in encoded for response in group.responses]
        rated = [(group, {j.response for j in group.judgements if isinstance(j, Rating)}) for group in encoded]
        self.counts["without_score"] = sum(len(group.responses) - len(given) for group, given in rated if given)
        self.counts["groups_truncated"] = len(self.truncated & {group.index for group in encoded})
        for name, value in (("groups_read", num_read), ("groups", len(encoded)), ("responses", len(responses))):
            self.counts[name] = value
        self.counts["without_eos"] = sum(not response.has_eos for response in responses)
        notes = []
        if self.renderer is not None and self.renderer.is_fallback:
            notes.append("the tokenizer has no chat template: conversations are written as a transcript "
                         "(Human: … Assistant: …); set template.chat to choose another")  # fmt: skip
        if self.renderer is None and getattr(self.tokenizer, "chat_template", None):
            notes.append("the tokenizer has a chat template, but these texts are plain and trained as they stand: "
                         "give turns ({\"role\", \"content\"}) to train the model's chat form")  # fmt: skip
        if self.counts["without_score"]:
            notes.append(f"{self.counts['without_score']} responses have no score though their group has scores: what "
                         "ratings decide leaves them out")  # fmt: skip
        if self.counts["end_is_not_eos"]:
            notes.append("the template ends turns with another token than the tokenizer's EOS: stop sampling at it too")
        if self.counts["without_eos"]:
            notes.append(f"{self.counts['without_eos']} of {len(responses)} responses have no trained end of sequence")
        return EncodedData(
            groups=encoded,
            counts=dict(self.counts),
            dropped=sorted(self.dropped, key=lambda item: item.index),
            notes=notes,
            options=self.options,
            template="" if self.renderer is None else self.renderer.name,
        )


class _TemplateError(DataError):
    """Control flow inside this module: a conversation that cannot be rendered."""


def _as_turns(text: Text, role: str) -> tuple[Message, ...]:
    if isinstance(text, tuple):
        return text
    return (Message(role=role, content=text),) if text or role == "assistant" else ()
