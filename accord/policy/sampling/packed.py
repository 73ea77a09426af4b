"""Keys and values of the rows being continued, and the attention that reads them.

Rows live in slots of one padded buffer per layer, written in place. A prompt that many rows share is kept once, and
its rows attend to it apart from what they drew; the two softmaxes are joined by their log-sum-exp. One token per row
and a packed row of them (1, B): no mask or cache of transformers' own.
Axes: B rows, A heads, G key/value heads (A = G · queries per head), L places of a slot, D head size, P prompt tokens,
E entries (keys and values of all layers), S slots.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from accord.policy.attention import SAMPLING_ATTENTION, tree_attention
from accord.policy.layout import Tree, TreeLayout
from accord.policy.policy import Policy
from accord.policy.sampling.fused import FusedStep, fused_step
from accord.policy.sampling.rows import Ints, Prompt

SHARED_PROMPT = 96  # tokens; a shorter prompt is cheaper copied into its rows than attended to apart
LOW_PRECISION = (torch.bfloat16, torch.float16)
GROWTH = 1.5
AHEAD = 64  # tokens a new row gets room for; memory not touched before is what is dear in a short call
_GRAIN = 32  # slots grow in such steps


@dataclass(frozen=True, slots=True)
class Options:
    """What a layer says of its scores."""

    scale: float
    sliding_window: int | None
    softcap: float | None


def sampling_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as the pass says (`tree` is a `Prefill` or a `Step`); a model is only run so after the layout's check."""
    options = Options(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    if torch.is_autocast_enabled(query.device.type):  # what the model's own attention would cast, again and again
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return tree.attend(module, query, key, value, options), None


AttentionInterface.register(SAMPLING_ATTENTION, sampling_attention)


@dataclass(slots=True)
class Prefill:
    """Prompts in one packed row, each attending to itself; keeps what its layers were given."""

    layout: TreeLayout
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys and values (G, N, D) in order of layers

    @property
    def position_ids_N(self) -> Tensor:
        """Positions of the packed tokens."""
        return self.layout.position_ids_N

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        """Attend within each prompt."""
        self.kept.append((k[0], v[0]))
        return tree_attention(
            module, q, k, v, None,
            scaling=options.scale, sliding_window=options.sliding_window, softcap=options.softcap, tree=self.layout,
        )[0]  # fmt: skip


@dataclass(slots=True)
class Store:
    """Buffers (E, S, G, L, D), one for all entries of the same shape; most models have one, all have few."""

    num_slots: int = 0
    length: int = 0
    buffers: list[Tensor] = field(default_factory=list)
    where: list[tuple[int, int]] = field(default_factory=list)  # of each entry (key, value, key, …): buffer, place
    slots: list[Tensor] = field(default_factory=list)  # of each entry: its buffer's part (S·G, L, D)

    def stacked(self, prefill: Prefill) -> list[Tensor]:
        """Return what a prefill kept, (E, G, N, D) per buffer, and learn the shapes from the first one."""
        entries = [x for pair in prefill.kept for x in pair]
        prefill.kept.clear()
        shapes = list(dict.fromkeys((x.shape[0], x.shape[2], x.dtype) for x in entries))
        groups = [[x for x in entries if (x.shape[0], x.shape[2], x.dtype) == shape] for shape in shapes]
        if not self.where:
            counts = dict.fromkeys(shapes, 0)
            for x in entries:
                shape = (x.shape[0], x.shape[2], x.dtype)
                self.where.append((shapes.index(shape), counts[shape]))
                counts[shape] += 1
            self.buffers = [
                group[0].new_zeros(len(group), 0, group[0].shape[0], 0, group[0].shape[2]) for group in groups
            ]
        return [torch.stack(group) for group in groups]

    def reserve(self, num_slots: int, length: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays."""
        if num_slots <= self.num_slots and length <= self.length:
            return
        slots = max(num_slots, self.num_slots)
        longest = self.length
        if length > longest:
            longest = -(-int(max(length, GROWTH * longest)) // _GRAIN) * _GRAIN
        for index, old in enumerate(self.buffers):
            # zeros: a place nobody has written must not hold a NaN, which no mask hides
            new = old.new_zeros(old.shape[0], slots, old.shape[2], longest, old.shape[4])
            new[:, : self.num_slots, :, : self.length] = old
            self.buffers[index] = new
        self.num_slots, self.length = slots, longest
        self.slots = [self.buffers[buffer][place].flatten(0, 1) for buffer, place in self.where]

    def put(self, slots_B: Tensor, prompt: list[Tensor]) -> None:
        """Copy a prompt's keys and values (E, G, P, D) into the beginning of slots."""
        for buffer, given in zip(self.buffers, prompt, strict=True):
            buffer[:, slots_B, :, : given.shape[2]] = given[:, None]

    def move(self, targets_B: Tensor, sources_B: Tensor, length: int) -> None:
        """Copy slots into others."""
        for buffer in self.buffers:
            buffer[:, targets_B, :, :length] = buffer[:, sources_B, :, :length]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of the batch that share a prompt."""

    rows: Tensor | slice
    num_rows: int
    prompt: list[Tensor]  # (E, G, P, D) per buffer


@dataclass(slots=True)
class Step:
    """One token of each of B rows: where it goes, and what it may see."""

    store: Store
    position_ids_N: Tensor  # (B,) in the whole sequence
    index_B: Tensor  # (B,) place in the slot
    num_keys: int  # the largest place + 1
    runs: list[Run]
    options: list[Options] = field(default_factory=list)  # of the layers that have attended
    _known: dict[object, Any] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
        """(1, A, B, D) each → (1, B, A, D), keys and values written on the way."""
        self.options.append(options)
        q_BAD, k_BGD, v_BGD = (x[0].transpose(0, 1) for x in (q, k, v))
        return self.attend_rows(len(self.options) - 1, q_BAD, k_BGD, v_BGD, options)[None]

    def attend_rows(self, layer: int, q_BAD: Tensor, k_BGD: Tensor, v_BGD: Tensor, options: Options) -> Tensor:
        """Write the new keys and values of a layer and attend: → (B, A, D)."""
        num_rows, heads, _ = q_BAD.shape
        keys, values = (self._written(2 * layer + i, x) for i, x in enumerate((k_BGD, v_BGD)))  # (B·G, L, D)
        kv_heads = k_BGD.shape[1]
        q_B = q_BAD.reshape(num_rows * kv_heads, heads // kv_heads, -1)
        mask = self._own_mask(kv_heads, options.sliding_window, q_BAD.dtype)  # (B·G, 1, L)
        if q_BAD.dtype in LOW_PRECISION and options.softcap is None and not self.runs:
            grouped = (x.unflatten(0, (num_rows, kv_heads)) for x in (q_B, keys, values, mask))
            q_BGQD, keys, values, mask = grouped  # whose scores stay in float32, as when the response is scored
            out = F.scaled_dot_product_attention(q_BGQD, keys, values, attn_mask=mask, scale=options.scale)
            return out.reshape(num_rows, heads, -1)
        if options.softcap is None:
            scores = torch.baddbmm(mask, q_B, keys.transpose(1, 2), alpha=options.scale)
        else:
            scores = _capped(torch.bmm(q_B, keys.transpose(1, 2)) * options.scale, options.softcap) + mask
        out = torch.bmm(_softmax(scores).to(values.dtype), values)  # (B·G, A/G, D)
        if self.runs:
            seen, log_mass = self._of_prompts(layer, q_B.view(num_rows, kv_heads, heads // kv_heads, -1), options)
            share = torch.sigmoid(log_mass - scores.logsumexp(-1).view_as(log_mass))
            out = torch.lerp(out.view_as(seen), seen, share[..., None].to(seen.dtype))
        return out.reshape(num_rows, heads, -1)

    def _written(self, entry: int, x_BGD: Tensor) -> Tensor:
        num_rows, kv_heads, size = x_BGD.shape
        slots, places = self.store.slots[entry], self._known.get(kv_heads)
        if places is None:
            lines = torch.arange(num_rows * kv_heads, device=slots.device) * self.store.length
            places = lines + (self.index_B if kv_heads == 1 else self.index_B.repeat_interleave(kv_heads))
            self._known[kv_heads] = places
        slots.view(-1, size).index_copy_(0, places, x_BGD.reshape(-1, size))
        return slots[: num_rows * kv_heads, : self.num_keys]

    def _own_mask(self, kv_heads: int, sliding_window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a row may look in its slot, −∞ elsewhere."""
        name = ("mask", kv_heads, sliding_window, dtype)
        if name not in self._known:
            at_L, index_B1 = torch.arange(self.num_keys, device=self.index_B.device), self.index_B[:, None]
            hidden_BL = at_L > index_B1
            if sliding_window is not None:
                hidden_BL |= at_L <= index_B1 - sliding_window
            mask_BL = torch.zeros(hidden_BL.shape, dtype=dtype, device=hidden_BL.device)
            mask_BL.masked_fill_(hidden_BL, float("-inf"))
            self._known[name] = mask_BL.repeat_interleave(kv_heads, 0)[:, None]
        return self._known[name]

    def _of_prompts(self, layer: int, q_BGQD: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """Attend to the shared prompts: outputs (B, G, A/G, D), and the log of each row's mass, −∞ without one."""
        buffer, place = self.store.where[2 * layer]
        value_buffer, value_place = self.store.where[2 * layer + 1]
        num_rows, kv_heads, queries, _ = q_BGQD.shape
        found: list[tuple[Tensor, Tensor]] = []
        for number, run in enumerate(self.runs):
            keys_GPD, values_GPD = run.prompt[buffer][place], run.prompt[value_buffer][value_place]
            q_GND = q_BGQD[run.rows].transpose(0, 1).reshape(kv_heads, run.num_rows * queries, -1)
            scores = torch.bmm(q_GND, keys_GPD.transpose(1, 2)).mul_(options.scale)
            if options.softcap is not None:
                scores = _capped(scores, options.softcap)
            hidden = self._hidden_in_prompt(number, keys_GPD.shape[1], queries, options.sliding_window)
            if hidden is not None:
                scores = scores.masked_fill(hidden, float("-inf"))
            mass = scores.logsumexp(-1)
            # a row whose window has left the prompt: no mass, and zeros instead of 0/0
            weights = _softmax(scores) if hidden is None else _softmax(scores).nan_to_num(0.0)
            out = torch.bmm(weights.to(values_GPD.dtype), values_GPD)
            shape = (kv_heads, run.num_rows, queries)
            found.append((out.view(*shape, -1).transpose(0, 1), mass.view(shape).transpose(0, 1)))
        first, first_mass = found[0]
        seen = first.new_zeros(num_rows, kv_heads, queries, first.shape[-1])
        log_mass = first_mass.new_full((num_rows, kv_heads, queries), float("-inf"))
        for run, (out, mass) in zip(self.runs, found, strict=True):
            seen[run.rows], log_mass[run.rows] = out, mass
        return seen, log_mass

    def _hidden_in_prompt(self, number: int, length: int, queries: int, sliding_window: int | None) -> Tensor | None:
        if sliding_window is None:
            return None
        name = ("prompt", number, sliding_window)
        if name not in self._known:
            at_P = torch.arange(length, device=self.index_B.device)
            position_R1 = self.position_ids_N[self.runs[number].rows][:, None]
            hidden_RP = at_P <= position_R1 - sliding_window
            is_needed = bool(hidden_RP.any())
            self._known[name] = hidden_RP.repeat_interleave(queries, 0) if is_needed else None
        return self._known[name]


def _capped(scores: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(scores / softcap)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class PackedDecoder:
    """Runs the training module on one token of every row, packed as one row of tokens."""

    takes_new_rows = True

    def __init__(self, policy: Policy, *, longest: int) -> None:
        self.policy, self.device, self.store = policy, policy.device, Store()
        self._can_share = (policy.autocast or next(policy.parameters()).dtype) not in LOW_PRECISION
        self._keeps_some = "logits_to_keep" in inspect.signature(policy.causal_lm.forward).parameters
        self._prompts: list[Prompt | None] = []  # whose row is in each slot
        self._runs: list[Run] | None = None
        self._fused: FusedStep | None = fused_step(policy, longest)

    def shares(self, prompt: Prompt, num_responses: int) -> bool:
        """Whether the prompt's keys and values are kept once."""
        return self._can_share and num_responses > 1 and len(prompt.ids) >= SHARED_PROMPT

    def prefill(self, prompts: list[Prompt]) -> Tensor:
        """Run prompts in one packed row and return the logits (P, V) of their first tokens."""
        lengths = [len(prompt.ids) for prompt in prompts]
        starts = np.cumsum([0, *lengths])
        trees = tuple(
            Tree((int(start), length), ((int(start) + length, 0),))
            for start, length in zip(starts[:-1], lengths, strict=True)
        )
        ids_N = torch.tensor([token for prompt in prompts for token in prompt.ids], device=self.device)
        positions_N = torch.cat([torch.arange(length) for length in lengths]).to(ids_N.device)
        prefill = Prefill(TreeLayout(trees, positions_N))
        logits_PV = self._logits(ids_N, prefill, torch.from_numpy(starts[1:] - 1).to(ids_N.device))
        stacks = self.store.stacked(prefill)
        for prompt, start, length in zip(prompts, starts[:-1].tolist(), lengths, strict=True):
            prompt.cache = [stack[:, :, start : start + length].contiguous() for stack in stacks]
        return logits_PV

    def place(self, prompts: list[Prompt], slots_B: Ints) -> None:
        """Begin rows of prompts in slots."""
        self._runs = None
        top = int(slots_B.max()) + 1
        own = max(0 if prompt.is_shared else len(prompt.ids) for prompt in prompts)
        soon = min(max(prompt.room for prompt in prompts), AHEAD)
        self.store.reserve(max(top, self.store.num_slots), own + soon)
        self._prompts.extend([None] * (top - len(self._prompts)))
        by_prompt: dict[int, list[int]] = {}
        for prompt, slot in zip(prompts, slots_B.tolist(), strict=True):
            self._prompts[slot] = prompt
            by_prompt.setdefault(prompt.index, []).append(slot)
        known = {prompt.index: prompt for prompt in prompts}
        for index, slots in by_prompt.items():
            if not known[index].is_shared:
                where = torch.tensor(slots, device=self.device)
                self.store.put(where, cast(list[Tensor], known[index].cache))

    def move(self, targets_B: Ints, sources_B: Ints, num_rows: int, length: int) -> None:
        """Keep the first slots only, after copying those behind into the holes among them."""
        self._runs = None
        if len(targets_B):
            targets, sources = (torch.from_numpy(x).to(self.device) for x in (targets_B, sources_B))
            self.store.move(targets, sources, length)
            for target, source in zip(targets_B.tolist(), sources_B.tolist(), strict=True):
                self._prompts[target] = self._prompts[source]
        del self._prompts[num_rows:]

    def step(self, ids_B: Ints, positions_B: Ints, index_B: Ints) -> Tensor:
        """Run one token of each row: its id, its position, its place in the row's slot; → logits (B, V)."""
        num_keys = int(index_B.max()) + 1
        self.store.reserve(len(ids_B), num_keys)
        if self._runs is None:
            self._runs = self._find_runs()
        given = torch.from_numpy(np.stack([ids_B, positions_B, index_B])).to(self.device)
        ids, positions, index = given.unbind(0)
        step = Step(self.store, positions, index, num_keys, self._runs)
        if self._fused is None or not self._fused.is_checked:
            logits_BV = self._logits(ids, step)
            if self._fused is not None:
                again = Step(self.store, positions, index, num_keys, self._runs)
                found_BV = self._fused.check(partial(self._fused, ids, positions, again), logits_BV, step.options)
                if found_BV is not None:
                    return found_BV
                # it has written what it computed into the slots
                self._fused = None
                self._logits(ids, Step(self.store, positions, index, num_keys, self._runs))
            return logits_BV
        return self._fused(ids, positions, step)

    def _find_runs(self) -> list[Run]:
        by_prompt: dict[int, list[int]] = {}
        shared: dict[int, Prompt] = {}
        for slot, prompt in enumerate(self._prompts):
            if prompt is not None and prompt.is_shared:
                by_prompt.setdefault(prompt.index, []).append(slot)
                shared[prompt.index] = prompt
        runs = []
        for index, slots in by_prompt.items():
            is_slice = slots[-1] - slots[0] == len(slots) - 1
            rows = slice(slots[0], slots[-1] + 1) if is_slice else torch.tensor(slots, device=self.device)
            runs.append(Run(rows, len(slots), cast(list[Tensor], shared[index].cache)))
        return runs

    def _logits(self, ids_N: Tensor, layout: Prefill | Step, places: Tensor | None = None) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": ids_N[None], "position_ids": layout.position_ids_N[None], "use_cache": False, "tree": layout,
        }  # fmt: skip
        if places is not None and self._keeps_some:
            inputs["logits_to_keep"] = places
        with self.policy.attention("sampling"):  # the model's own logits: that they are a scorer's is for it to show
            logits_NV = self.policy.causal_lm(**inputs).logits[0]
        return logits_NV if places is None or self._keeps_some else logits_NV[places]
