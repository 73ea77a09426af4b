"""The local sampler: one prefill per prompt shared by its K responses, and a batch that is kept full.

It runs the training module itself. Rows that have ended leave, and waiting prompts enter as soon as a good share of
the batch is free and the cache's budget allows. Axes: B rows (prompt × response), V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accord.data import encode_prompts
from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.policy import Policy
from accord.policy.sampling.draw import CHUNK, Barred, adjusted_logits, draw, uniforms
from accord.policy.sampling.packed import PackedDecoder
from accord.policy.sampling.plain import PlainDecoder
from accord.policy.sampling.protocol import Samples, SamplingSettings
from accord.policy.sampling.rows import Drawn, Ints, Prompt, check_prompts, stop_ids, window
from accord.records import Group, Response

PREFILL_TOKENS = 8192  # prompts prefilled together, at most: what a layer makes of them is held at once
FREE_SHARE = 4  # a quarter of the batch is free before prompts enter: a prefill costs a step's overhead
_PROBE_TOKENS = 512

ROW, TOKEN, POSITION, INDEX, COUNT, ROOM, RESERVED, PROMPT = range(8)


@torch.no_grad()
def sample_responses(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    streams: Sequence[int] | None = None,
    chat_template: str = "auto",
    more_stop_ids: Iterable[int] = (),
) -> list[tuple[Response, ...]]:
    """Draw K responses to each prompt of token ids.

    `streams` names each prompt's stream of random numbers, its position unless given: a process that has a share of
    the prompts gives their positions in the whole. A response ends at any of `stop_ids(policy, chat_template)` and
    `more_stop_ids` (of trained data: `trained_ends`), at a stop string, at `max_tokens`, and where the model has no
    further position. Each response carries its token ids (incl. the id it stopped at, if any), its finish reason and
    the log-probabilities, nats, of the distribution it was actually drawn from. Text before a stop string is its
    content; ids and log-probabilities are all that was drawn.
    The same (seed, stream, response) gives the same text whatever else is in the batch, unless a random number falls
    within rounding of the border between two tokens: products of other shapes round differently.
    Raises PolicyError for a prompt that is empty or fills the model's window and for logits that are not numbers, and
    its child NoSampler for a model that keeps no attention cache, or more than one.
    """
    check_prompts(policy, prompts)
    if not prompts:
        return []
    ends = stop_ids(policy, chat_template) | frozenset(more_stop_ids)
    with _ready(policy, prompts):
        return _Batch(policy, prompts, range(len(prompts)) if streams is None else streams, settings, ends).run()


def answer_prompts(
    policy: Policy, groups: Sequence[Group], settings: SamplingSettings, *, chat_template: str = "auto"
) -> list[Group]:
    """Return groups with the same prompts and K fresh responses each; earlier responses and judgements are left out."""
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    drawn = sample_responses(policy, prompts, settings, chat_template=chat_template)
    return [
        replace(group, responses=responses, judgements=(), extra={})
        for group, responses in zip(groups, drawn, strict=True)
    ]


class LocalSampler:
    """The policy of this process as a `Sampler`; `policy_version` is its owner's to count up."""

    def __init__(
        self, policy: Policy, *, chat_template: str = "auto", more_stop_ids: Iterable[int] = (), policy_version: int = 0
    ) -> None:
        self.policy, self.policy_version = policy, policy_version
        self.chat_template, self.more_stop_ids = chat_template, frozenset(more_stop_ids)

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, streams: Sequence[int] | None = None
    ) -> Samples:
        """Draw K responses to each prompt of token ids; see `sample_responses`."""
        drawn = sample_responses(
            self.policy, prompts, settings,
            streams=streams, chat_template=self.chat_template, more_stop_ids=self.more_stop_ids,
        )  # fmt: skip
        return Samples(responses=tuple(drawn), policy_version=self.policy_version, settings=settings)


@contextmanager
def _ready(policy: Policy, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
    """Run a block with the policy ready for sampling, and leave it as it was."""
    probes = [tuple(prompt)[:_PROBE_TOKENS] for prompt in prompts[:2]]
    response = TokenResponse(ids=(probes[0] * 4)[:4])
    policy.ensure_layout([TokenGroup(prompt_ids=ids, responses=(response, response)) for ids in probes])
    was_training = policy.training
    if was_training:
        policy.eval()  # with gradient checkpointing, layers in training mode would drop the cache
    frozen = [p for p in policy.parameters() if not p.requires_grad and p.dtype == torch.float32]
    with ExitStack() as stack:
        if was_training:
            stack.callback(policy.train)
        if policy.autocast is not None:
            stack.callback(torch.clear_autocast_cache)
            for parameter in frozen:  # autocast keeps the cast weight of what can learn, and casts others every time
                parameter.requires_grad_(True)
                stack.callback(parameter.requires_grad_, False)
        if getattr(policy.causal_lm.base_model, "_compiled_call_impl", None) is not None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # shapes change from step to step
        stack.enter_context(policy.precision())
        yield


class _Batch:
    """The rows being decoded, in slots 0 … size − 1, and the prompts that wait."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[int],
        settings: SamplingSettings,
        ends: frozenset[int],
    ) -> None:
        self.policy, self.settings, self.num_prompts = policy, settings, len(prompts)
        limit = window(policy)
        rooms = [min(settings.max_tokens, limit - len(ids)) for ids in prompts]
        longest = max(len(ids) + room for ids, room in zip(prompts, rooms, strict=True))
        self.decoder: PackedDecoder | PlainDecoder
        self.decoder = PackedDecoder(policy, longest=longest) if policy.layout == "tree" else PlainDecoder(policy)
        self.prompts = [
            Prompt(index, tuple(ids), stream, room)
            for index, (ids, stream, room) in enumerate(zip(prompts, streams, rooms, strict=True))
        ]
        for prompt in self.prompts:
            prompt.is_shared = self.decoder.shares(prompt, settings.num_responses)
        self.waiting = deque(sorted(self.prompts, key=lambda prompt: len(prompt.ids)))  # neighbours pad little
        self.drawn = Drawn(policy, settings, ends)
        self.ends = np.array(sorted(ends), dtype=np.int64)
        self.is_end_V = np.zeros(0, dtype=bool)
        self.size = 0
        self.state = np.zeros((8, 0), dtype=np.int64)
        self.uniform = np.zeros((0, CHUNK))
        self.seen_BV: Tensor | None = None

    def run(self) -> list[tuple[Response, ...]]:
        """Draw until every row has ended."""
        k = self.settings.num_responses
        while self.size or self.waiting:
            holes = np.zeros(0, dtype=np.int64)
            if self.size:
                state = self.state[:, : self.size]
                logits_BV = self.decoder.step(state[TOKEN], state[POSITION], state[INDEX])
                state[POSITION] += 1
                state[INDEX] += 1
                seen = None if self.seen_BV is None else self.seen_BV[: self.size]
                holes = np.flatnonzero(self._draw(logits_BV, state, self.uniform[: self.size], seen))
                self._release(state[PROMPT, holes])
            if len(holes) == self.size:
                self.decoder.move(holes[:0], holes[:0], 0, 0)
                self.size, holes = 0, holes[:0]
            entering = self._entering(holes) if self.waiting else []
            if len(holes) or entering:
                self._settle(holes, entering)
        rows = self.drawn.responses(self.num_prompts * k)
        return [tuple(rows[start : start + k]) for start in range(0, len(rows), k)]

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _draw(
        self, logits_BV: Tensor, state: Ints, uniform: NDArray[np.float64], seen_BV: Tensor | None
    ) -> NDArray[np.bool_]:
        """Draw a token of each row, note it, and return which rows have ended."""
        settings, count_B = self.settings, state[COUNT]
        place_B = count_B % CHUNK
        for row in np.flatnonzero(place_B == 0) if not settings.is_greedy else ():
            response = int(state[ROW, row]) % settings.num_responses
            stream = self.prompts[state[PROMPT, row]].stream
            uniform[row] = uniforms(settings.seed, stream, response, int(count_B[row]) // CHUNK)
        too_short_B = count_B < settings.min_tokens
        if seen_BV is not None or (too_short_B.any() and len(self.ends)):
            barred = Barred(
                seen_BV,
                torch.from_numpy(too_short_B).to(logits_BV.device),
                torch.from_numpy(self.ends[self.ends < logits_BV.shape[-1]]).to(logits_BV.device),
            )
        else:
            barred = Barred()
        if not len(self.is_end_V):
            self.is_end_V = np.isin(np.arange(logits_BV.shape[-1]), self.ends)
        adjusted = adjusted_logits(logits_BV, settings, barred)
        next_B, logps = draw(adjusted, uniform[np.arange(len(place_B)), place_B], settings)
        if seen_BV is not None:
            seen_BV.scatter_(1, next_B[:, None], True)
        ids_B, logps_B = next_B.cpu().numpy(), logps.double().cpu().numpy()
        self.drawn.add(state[ROW], ids_B, logps_B, count_B)
        ended_B = self.is_end_V[ids_B] | (count_B + 1 == state[ROOM])
        if settings.stop:
            ended_B |= self.drawn.stopped_by_text(state[ROW], ids_B, count_B)
        state[TOKEN] = ids_B
        state[COUNT] += 1
        return ended_B

    # -- who enters --------------------------------------------------------------------------------------------------

    def _entering(self, holes: Ints) -> list[tuple[Prompt, int]]:
        """Return the prompts that begin now, each with how many of its responses."""
        settings, k, num_rows = self.settings, self.settings.num_responses, self.size - len(holes)
        if num_rows and not self.decoder.takes_new_rows:
            return []
        most = settings.max_rows if self.decoder.takes_new_rows else max(k, settings.max_rows // k * k)
        free = most - num_rows
        still = sum(k - prompt.num_begun for prompt in self.waiting) if len(self.waiting) * k < most else most
        if num_rows and free < min(still, max(1, most // FREE_SHARE)):
            return []
        state = np.delete(self.state[:, : self.size], holes, 1)
        longest = int(state[RESERVED].max()) if num_rows else 0
        shared = sum(len(self.prompts[i].ids) for i in set(state[PROMPT].tolist()) if self.prompts[i].is_shared)
        chosen: list[tuple[Prompt, int]] = []
        prefill = 0
        while self.waiting and free:
            prompt = self.waiting[0]
            own = prompt.room + (0 if prompt.is_shared else len(prompt.ids))
            longest = max(longest, own)
            shared += len(prompt.ids) if prompt.is_shared else 0
            prefill += len(prompt.ids) if prompt.logits_V is None else 0
            allowed = (settings.max_batch_tokens - shared) // longest - num_rows
            count = min(k - prompt.num_begun, free, allowed)
            if not self.decoder.takes_new_rows and count < k:
                count = 0  # all responses of a prompt at once: its cache is not kept
            if not num_rows:
                count = max(count, 1 if self.decoder.takes_new_rows else k)  # something must go on
            if count <= 0 or (chosen and prefill > PREFILL_TOKENS):
                break
            chosen.append((prompt, count))
            num_rows, free = num_rows + count, max(free - count, 0)
            prompt.num_begun += count
            if prompt.num_begun < k:
                break
            self.waiting.popleft()
        return chosen

    def _release(self, prompts_B: Ints) -> None:
        for index in prompts_B.tolist():
            prompt = self.prompts[index]
            prompt.num_running -= 1
            if not prompt.num_running and prompt.num_begun == self.settings.num_responses:
                prompt.cache = prompt.logits_V = None

    def _begin(
        self, entering: list[tuple[Prompt, int]]
    ) -> tuple[list[Prompt], Ints, NDArray[np.float64], Tensor | None]:
        """Prefill, draw the first tokens, and return the rows that go on."""
        k = self.settings.num_responses
        fresh = [prompt for prompt, _ in entering if prompt.logits_V is None]
        if fresh:
            for prompt, logits_V in zip(fresh, self.decoder.prefill(fresh), strict=True):
                prompt.logits_V = logits_V
        state = np.zeros((8, sum(count for _, count in entering)), dtype=np.int64)
        start = 0
        for prompt, count in entering:
            part = state[:, start : start + count]
            own = 0 if prompt.is_shared else len(prompt.ids)
            first = prompt.index * k + prompt.num_begun - count
            part[ROW] = np.arange(first, first + count)
            part[[POSITION, INDEX, ROOM]] = np.array([[len(prompt.ids)], [own], [prompt.room]])
            part[RESERVED], part[PROMPT] = prompt.room + own, prompt.index
            prompt.num_running += count
            start += count
        rows = [self.prompts[index] for index in state[PROMPT]]
        logits_BV = torch.stack([prompt.logits_V for prompt in rows if prompt.logits_V is not None])
        seen_BV = self._seen(rows, logits_BV) if self.settings.repetition_penalty != 1 else None
        uniform = np.zeros((len(rows), CHUNK))
        ended_B = self._draw(logits_BV, state, uniform, seen_BV)
        for prompt, _ in entering:
            if prompt.num_begun == k:
                prompt.logits_V = None
        self._release(state[PROMPT, ended_B])
        goes_on = np.flatnonzero(~ended_B)
        kept = None if seen_BV is None else seen_BV[torch.from_numpy(goes_on).to(seen_BV.device)]
        return [rows[i] for i in goes_on], state[:, goes_on], uniform[goes_on], kept

    @staticmethod
    def _seen(rows: list[Prompt], logits_BV: Tensor) -> Tensor:
        seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        for place, prompt in enumerate(rows):
            seen_BV[place, torch.tensor(prompt.ids, device=seen_BV.device)] = True
        return seen_BV

    # -- slots -------------------------------------------------------------------------------------------------------

    def _settle(self, holes: Ints, entering: list[tuple[Prompt, int]]) -> None:
        """Put new rows into the slots of ended ones and behind them, and fill what is left from the end."""
        prompts, state, uniform, seen = self._begin(entering) if entering else ([], self.state[:, :0], None, None)
        num_new = len(prompts)
        size = self.size + num_new - len(holes)
        slots = np.concatenate([holes[:num_new], np.arange(self.size, max(size, self.size))])
        left = holes[num_new:]
        targets = left[left < size]
        sources = np.delete(np.arange(size, self.size), left[left >= size] - size)
        if len(left):
            length = int(self.state[INDEX, : self.size].max())
            self.decoder.move(targets, sources, size, length)
            self._copy(targets, self.state[:, sources], self.uniform[sources], None)
            if self.seen_BV is not None:
                self.seen_BV[torch.from_numpy(targets)] = self.seen_BV[torch.from_numpy(sources)]
        if num_new:
            assert uniform is not None
            self.decoder.place(prompts, slots)
            self._grow(size)
            self._copy(slots, state, uniform, seen)
        self.size = size

    def _grow(self, size: int) -> None:
        more = size - self.state.shape[1]
        if more > 0:
            self.state = np.pad(self.state, ((0, 0), (0, more)))
            self.uniform = np.pad(self.uniform, ((0, more), (0, 0)))

    def _copy(self, slots: Ints, state: Ints, uniform: NDArray[np.float64], seen: Tensor | None) -> None:
        self.state[:, slots], self.uniform[slots] = state, uniform
        if seen is not None:
            if self.seen_BV is None or len(self.seen_BV) < self.state.shape[1]:
                grown = seen.new_zeros(self.state.shape[1], seen.shape[1])
                if self.seen_BV is not None:
                    grown[: len(self.seen_BV)] = self.seen_BV
                self.seen_BV = grown
            self.seen_BV[torch.from_numpy(slots).to(seen.device)] = seen
