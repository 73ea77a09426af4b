"""Tree attention: a response token attends to its prompt and to its own response, never to a sibling.

Registered with transformers' attention interface, so every decoder whose attention goes through that interface runs
on the tree layout unchanged. Runs on scaled-dot-product attention; models that soft-cap scores take the written-out
form. Arrangements of the same mathematics: short trees are padded together under one mask (few calls), long ones run
prompt and responses apart (only the necessary products; in large ones where the processor is best at them).
Axes: B trees, A heads, N packed, L padded, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from accord.policy.layout import Tree, TreeLayout
from accord.policy.shared_prompt import can_share_products, shared_prompt_attention

TREE_ATTENTION = "accord_tree"
SAMPLING_ATTENTION = "accord_sampling"  # of policy/sampling, one token per row
SHORT_TREE = 256  # tokens; below it one padded call is cheaper than one call per response
LONG_PROMPT = 448  # tokens; from here on all its responses at once are cheaper, where `can_share_products` says so
MOST_PADDING = 4  # times the scores that are needed; above it the calls are


class TreeUnsupported(RuntimeError):
    """This model's attention asks for something the tree layout cannot give; the plain path serves it."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: TreeLayout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each tree of the packed row: (1, A, N, D) → (1, N, A, D).

    Raises TreeUnsupported for attention sinks, position biases, or a model that does not pass the layout through.
    """
    if tree is None:
        raise TreeUnsupported("the model does not pass keyword arguments through to its attention")
    tree.calls.append(module)
    for name in ("s_aux", "position_bias"):
        if others.get(name) is not None:
            raise TreeUnsupported(f"the model's attention uses `{name}`")
    assert attention_mask is None, "a packed row carries no mask"
    assert dropout == 0.0, "scoring runs without dropout"
    num_heads, scale = query.shape[1], scaling if scaling is not None else query.shape[-1] ** -0.5
    groups = num_heads // key.shape[1]
    q_AND, k_AND, v_AND = query[0], key[0], value[0]
    if groups > 1:
        k_AND, v_AND = k_AND.repeat_interleave(groups, 0), v_AND.repeat_interleave(groups, 0)
    attend = _Attend(tree, scale, sliding_window, softcap)
    run = attend.padded if _pads_well(tree.trees) else attend.segmented
    return run(q_AND, k_AND, v_AND).transpose(0, 1)[None], None


class _Attend:
    """One layer's attention over a layout; masks are kept in the layout because every layer needs the same ones."""

    def __init__(self, layout: TreeLayout, scale: float, window: int | None, softcap: float | None) -> None:
        self.layout, self.scale, self.softcap = layout, scale, softcap
        longest = max(tree.prompt[1] + max(length for _, length in tree.responses) for tree in layout.trees)
        self.window = window if window is not None and window < longest else None

    def segmented(self, q_AND: Tensor, k_AND: Tensor, v_AND: Tensor) -> Tensor:
        """Prompts attend causally; each response attends to its prompt and, causally, to itself."""
        can_share = self.window is None and self.softcap is None and can_share_products(q_AND, k_AND, v_AND)
        is_whole = [can_share and tree.prompt[1] >= LONG_PROMPT for tree in self.layout.trees]
        lengths = [
            length
            for tree, whole in zip(self.layout.trees, is_whole, strict=True)
            for length in ((tree.length,) if whole else (tree.prompt[1], *(n for _, n in tree.responses)))
        ]
        # split, not sliced: the backward pass of a split is one concatenation
        pieces = iter(list(zip(*(x_AND.split(lengths, dim=1) for x_AND in (q_AND, k_AND, v_AND)), strict=True)))
        parts: list[Tensor] = []
        for tree, whole in zip(self.layout.trees, is_whole, strict=True):
            if whole:
                own = [n for _, n in tree.responses]
                parts.append(
                    shared_prompt_attention(*next(pieces), num_prompt=tree.prompt[1], lengths=own, scale=self.scale)
                )
                continue
            q_prompt, k_prompt, v_prompt = next(pieces)
            parts.append(self._causal(q_prompt, k_prompt, v_prompt))
            for _ in tree.responses:
                q_own, k_own, v_own = next(pieces)
                k_row, v_row = torch.cat([k_prompt, k_own], dim=1), torch.cat([v_prompt, v_own], dim=1)
                parts.append(self._causal(q_own, k_row, v_row) if q_own.shape[1] else v_own)
        return torch.cat(parts, dim=1)

    def padded(self, q_AND: Tensor, k_AND: Tensor, v_AND: Tensor) -> Tensor:
        """All trees of the row as one padded batch under the tree mask."""
        index_BL, mask_B1LL, back_N = self._padded_indices(q_AND.device)
        q, k, v = (x[:, index_BL].transpose(0, 1) for x in (q_AND, k_AND, v_AND))  # (B, A, L, D)
        out_BALD = self._attend(q, k, v, mask_B1LL)
        return out_BALD.transpose(0, 1).flatten(1, 2)[:, back_N]

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Query i of n stands at key position m − n + i."""
        num_queries, num_keys = q.shape[1], k.shape[1]
        if num_queries == num_keys and self.window is None and self.softcap is None:
            return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=self.scale)[0]
        name = ("causal", num_queries, num_keys, self.window, q.dtype)
        if name not in self.layout.cache:
            at_Q1 = torch.arange(num_keys - num_queries, num_keys, device=q.device)[:, None]
            at_1K = torch.arange(num_keys, device=q.device)[None]
            self.layout.cache[name] = _additive(self._may_see(at_Q1, at_1K), q.dtype)
        return self._attend(q[None], k[None], v[None], self.layout.cache[name])[0]

    def _may_see(self, at_Q: Tensor, at_K: Tensor) -> Tensor:
        seen = at_K <= at_Q
        return seen if self.window is None else seen & (at_Q - at_K < self.window)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype), scale=self.scale)
        scores = self.softcap * torch.tanh(q @ k.transpose(-1, -2) * self.scale / self.softcap)
        wide = torch.promote_types(q.dtype, torch.float32)
        return torch.softmax((scores + mask).to(wide), dim=-1).to(q.dtype) @ v

    def _padded_indices(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        cache, trees = self.layout.cache, self.layout.trees
        if ("index",) not in cache:
            longest = max(tree.length for tree in trees)
            index_BL = torch.zeros((len(trees), longest), dtype=torch.long)
            branch_BL = torch.full((len(trees), longest), -1)  # 0 = prompt, 1… = responses, −1 = padding
            back: list[Tensor] = []
            for row, tree in enumerate(trees):
                index_BL[row, : tree.length] = tree.prompt[0] + torch.arange(tree.length)
                branch_BL[row, : tree.length] = _branches(tree)
                back.append(row * longest + torch.arange(tree.length))
            cache[("index",)] = index_BL.to(device)
            cache[("branch",)] = branch_BL.to(device)
            cache[("back",)] = torch.cat(back).to(device)
        index_BL, back_N = cache[("index",)], cache[("back",)]
        name = ("mask", self.window)
        if name not in cache:
            branch_BL = cache[("branch",)]
            at_BL = self.layout.position_ids_N[index_BL]
            same = branch_BL[:, :, None] == branch_BL[:, None, :]
            visible = (same | (branch_BL[:, None, :] == 0)) & self._may_see(at_BL[:, :, None], at_BL[:, None, :])
            visible |= (branch_BL == -1)[:, :, None]  # a padding row sees everything, so that its softmax is defined
            cache[name] = _additive(visible[:, None], torch.float32)
        return index_BL, cache[name], back_N


def _pads_well(trees: Sequence[Tree]) -> bool:
    """Whether trees are short, and alike enough that one long one does not make a giant of every row."""
    lengths = [tree.length for tree in trees]
    needed = sum(length**2 for length in lengths)
    return sum(lengths) < SHORT_TREE * len(lengths) and len(lengths) * max(lengths) ** 2 <= MOST_PADDING * needed


def _branches(tree: Tree) -> Tensor:
    lengths = torch.tensor([tree.prompt[1], *(length for _, length in tree.responses)])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


# its shapes differ from batch to batch: `torch.compile` works around it instead of recompiling
AttentionInterface.register(TREE_ATTENTION, torch.compiler.disable(tree_attention))


class AttentionSwitch:
    """Which attention a model runs on: the only place that knows transformers' private names for it.

    Written to the configs directly: transformers' own setter re-validates and warns for each change, and this one is
    moved for every batch.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if hasattr(config, "_attn_implementation_internal")}
        self._configs: list[Any] = list(found.values())  # the distinct ones whose setting the modules read
        self._own = str(model.config._attn_implementation)

    def to(self, layout: str) -> AbstractContextManager[None]:
        """Run a block on the attention of a layout; "plain" is the model's own."""
        return self._set_to({"tree": TREE_ATTENTION, "sampling": SAMPLING_ATTENTION}.get(layout, self._own))

    def as_now(self) -> AbstractContextManager[None]:
        """Make a block that runs, whenever it is entered, on the attention that is set now."""
        return self._set_to(self._configs[0]._attn_implementation_internal)

    @contextmanager
    def _set_to(self, implementation: str) -> Iterator[None]:
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation_internal = implementation
            yield
        finally:
            for config, value in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = value


def supports_interface(model: PreTrainedModel) -> bool:
    """Whether the model's attention goes through the interface at all (necessary, not sufficient: see `check`)."""
    return bool(model._can_set_attn_implementation())
