"""The policy: a causal language model, its tokenizer, and one way of scoring groups with it.

Axes: P groups, K responses (padded), S = responses of all groups in order, N response tokens of the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accord.data.tokens import TokenGroup
from accord.errors import PolicyError
from accord.policy.attention import AttentionSwitch, supports_interface
from accord.policy.head import Statistic, linear_logps, logps_of_logits
from accord.policy.layout import Batch, lay_out_plain, lay_out_tree
from accord.policy.products import FastLinear
from accord.policy.tokens.entropy import position_entropy
from accord.policy.tokens.position_kl import Readout, position_kl
from accord.policy.tokens.q_values import QValues
from accord.records import Group, Response, Text

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities of the responses of P groups, summed over trained tokens (P, K), and per token (N,)."""

    logps_PK: Tensor  # nats; carries grad unless scored under no_grad; 0 in padding slots
    num_tokens_PK: Tensor  # trained tokens
    is_valid_PK: Tensor
    token_logps_N: Tensor  # every response token, trained or not, in (group, response, token) order
    sequence_N: Tensor  # flat response index 0 … S−1 of each
    is_trained_N: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)  # by-products per token (N,), detached
    position_kl_N: Tensor | None = None  # KL(π_ref ‖ π) in nats, where a reference was given; carries grad
    entropy_N: Tensor | None = None  # of the next-token distributions, nats, where asked for; carries grad
    value_N: Tensor | None = None  # of a critic, before each token; carries grad
    q_values: QValues | None = None  # of heads that learn what tokens are worth

    score_PK: Tensor | None = None  # a reward model's instead, as logits; 0 in padding slots …
    step_score_PKS: Tensor | None = None  # … at the ends of the steps of each response (S = most steps) …
    pair_score_PKK: Tensor | None = None  # … or a joint model's, of "i before j"; 0 on the diagonal

    @property
    def graded_PK(self) -> Tensor:
        """What carries the gradient: log-probabilities, or a reward model's scores."""
        return next(x for x in (self.score_PK, self.pair_score_PKK, self.logps_PK) if x is not None)


class Policy(nn.Module):
    """A model that scores groups; `forward` is `score`, so that wrappers for many devices see every parameter used.

    `layout` is "tree" or "plain"; `why_plain` says why the tree layout is not used, or is None.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        path: str = "",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.tokenizer = tokenizer
        self.path = path
        self.temperature = 1.0  # logits are divided by it: of a policy that samples at another one
        self.has_linear_head: bool | None = None  # None until the first forward compared it with the model's own logits
        self.why_plain: str | None = None
        self._is_settled = False
        self._attention = AttentionSwitch(self.causal_lm)
        if not supports_interface(self.causal_lm):
            self.fall_back_to_plain("its attention does not go through transformers' attention interface")

    # -- what the model is -------------------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, inside an adapter wrapper if there is one."""
        get_base_model = getattr(self.model, "get_base_model", None)  # peft wraps; plain models have no such method
        return cast(PreTrainedModel, get_base_model() if get_base_model is not None else self.model)

    @property
    def has_adapters(self) -> bool:
        """Whether the trainable weights are peft adapters on a frozen base."""
        return hasattr(self.model, "disable_adapter")

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def layout(self) -> str:
        """Which layout `score` uses."""
        return "plain" if self.why_plain is not None else "tree"

    def settle_layout(self, groups: Sequence[TokenGroup]) -> None:
        """Check the tree layout on groups, or fall back to the plain one, saying so. The first `score` does it."""
        from accord.policy.check import check_layout  # the check is written in terms of policies

        self._is_settled = True
        found = check_layout(self, groups) if self.why_plain is None else None
        if found is not None and found.reason is not None:
            self.fall_back_to_plain(found.reason)

    def ensure_layout(self, groups: Sequence[TokenGroup]) -> None:
        """Settle the layout on groups unless that was done."""
        if not self._is_settled:
            self.settle_layout(groups)

    def fall_back_to_plain(self, reason: str) -> None:
        """Use the plain padded layout from now on, and say why, once."""
        if self.why_plain is None:
            log.warning("scoring on the plain path (one padded row per response): %s", reason)
        self.why_plain = reason

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # the backward pass runs a layer again outside `forward`: under the attention its first run had
            return nullcontext(), self._attention.as_now()

        model = self.causal_lm
        # transformers renamed it within the supported range
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False, "context_fn": contexts})
        except ValueError as error:
            raise PolicyError(f"{error} — set model.gradient_checkpointing=false") from error
        model.enable_input_require_grads()

    def attention(self, layout: str) -> AbstractContextManager[None]:
        """Run a block on the attention of a layout; "plain" is the model's own (also for sampling)."""
        return self._attention.to(layout)

    def precision(self) -> AbstractContextManager[Any]:
        """Run a block with the products of "mixed" precision, or as the weights are."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Run a block with the adapters off: the base model is the reference."""
        assert self.has_adapters
        with cast(Any, self.model).disable_adapter():
            yield

    # -- scoring -----------------------------------------------------------------------------------------------------

    def score(self, groups: Sequence[TokenGroup], *, statistics: Sequence[Statistic] = ()) -> Scores:
        """Score the responses of groups: log π(y|x) in nats, by the tree layout where the model allows it."""
        return self(groups, statistics=statistics)

    def sample(
        self,
        prompts: Sequence[Text | Group],
        *,
        num_responses: int = 1,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        min_tokens: int = 0,
        stop: Sequence[str] = (),
        seed: int = 0,
        chat_template: str = "auto",
    ) -> list[Group]:
        """Answer prompts (text, turns, or groups whose responses are left out) with K sampled responses each.

        Temperature 0 is greedy. Responses carry text, token ids, finish reason and the log-probabilities, nats, of the
        distribution they were drawn from. Raises PolicyError for settings out of range; see `policy.sampling`.
        """
        from accord.policy.sampling import SamplingSettings, answer_prompts

        asked = [
            prompt if isinstance(prompt, Group) else Group(prompt=prompt, responses=(Response(token_ids=()),))
            for prompt in prompts
        ]
        settings = SamplingSettings(
            num_responses=num_responses, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            min_p=min_p, repetition_penalty=repetition_penalty, min_tokens=min_tokens, stop=tuple(stop), seed=seed,
        )  # fmt: skip
        return answer_prompts(self, asked, settings, chat_template=chat_template)

    def forward(
        self,
        groups: Sequence[TokenGroup],
        *,
        statistics: Sequence[Statistic] = (),
        layout: str | None = None,
        reference: Readout | None = None,
        with_entropy: bool = False,
    ) -> Scores:
        """See `score`; `layout` overrides the choice for one call (checks).

        `reference` is another model's `readout_of` the same groups, compared with this one position by position.
        """
        batch, layout = self._lay_out(groups, layout)
        with self.attention(layout), self.precision():
            readout = self._readout(batch)
            token_logps_N, found = self.token_logps(batch, statistics, readout)
            scores = _gather(groups, batch, token_logps_N, found)
            return replace(
                scores,
                position_kl_N=None if reference is None else position_kl(readout, reference),
                entropy_N=position_entropy(readout) if with_entropy else None,
                value_N=self.values(groups, readout),
                q_values=self.q_values(readout, batch.targets_N),
            )

    def values(self, groups: Sequence[TokenGroup], readout: Readout) -> Tensor | None:
        """Return what a critic says before each response token; None without one."""
        return None

    def q_values(self, readout: Readout, taken_N: Tensor) -> QValues | None:
        """Return what heads of action values say of the response tokens; None without such heads."""
        return None

    @torch.no_grad()
    def readout_of(self, groups: Sequence[TokenGroup]) -> Readout:
        """Return what the model says where the groups' response tokens are predicted, without gradient."""
        batch, layout = self._lay_out(groups, None)
        with self.attention(layout), self.precision():
            return self._readout(batch).detached()

    def sized(self, group: TokenGroup) -> TokenGroup:
        """Return the group with the number of tokens this model lays out for it, where they are not just its own."""
        return group

    def _lay_out(self, groups: Sequence[TokenGroup], layout: str | None) -> tuple[Batch, str]:
        if layout is None and not self._is_settled:
            self.settle_layout(groups[:2])
        layout = layout or self.layout
        if layout == "tree":
            return lay_out_tree(groups, self.device), layout
        return lay_out_plain(groups, self.device, self.pad_id), layout

    @torch.no_grad()
    def predicting_states(self, group: TokenGroup) -> list[Tensor] | None:
        """Return of each response the hidden states (T, H) that predict its tokens; None without a linear head."""
        batch = lay_out_plain([group], self.device, self.pad_id)
        with self.attention("plain"), self.precision():
            if self.has_linear_head is None:
                self.has_linear_head = self._check_head(batch)
            if not self.has_linear_head:
                return None
            hidden_NH = self._backbone(**self._inputs(batch)).last_hidden_state.flatten(0, 1)[batch.predicted_at_N]
        return list(hidden_NH.split([len(response.ids) for response in group.responses]))

    @property
    def pad_id(self) -> int:
        """An id for positions nobody looks at."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else 0

    def token_logps(
        self, batch: Batch, statistics: Sequence[Statistic] = (), readout: Readout | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return log-probabilities (N,) of a laid-out batch's response tokens, and the requested by-products."""
        readout = readout or self._readout(batch)
        if readout.logits_NV is not None:
            return logps_of_logits(readout.logits_NV, batch.targets_N, statistics)
        assert readout.hidden_NH is not None
        assert readout.weight_VH is not None
        return linear_logps(readout.hidden_NH, readout.weight_VH, readout.bias_V, batch.targets_N, statistics)

    def _readout(self, batch: Batch) -> Readout:
        if self.has_linear_head is None:
            self.has_linear_head = self._check_head(batch)
        head = self.causal_lm.get_output_embeddings()
        inputs = self._inputs(batch)
        if self.has_linear_head and isinstance(head, nn.Linear):
            hidden_BLH = self._backbone(**inputs).last_hidden_state
            hidden_NH = hidden_BLH.flatten(0, 1)[batch.predicted_at_N]
            hidden_NH = hidden_NH.to(self.autocast or hidden_NH.dtype)  # autocast does not reach into our own function
            weight_VH = head.weight.to(hidden_NH.dtype)
            bias_V = head.bias.to(hidden_NH.dtype) if head.bias is not None else None
            return Readout(hidden_NH=hidden_NH, weight_VH=weight_VH, bias_V=bias_V).at(self.temperature)
        return Readout(logits_NV=self._own_logits(inputs, batch)).at(self.temperature)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.tree is not None:
            inputs["tree"] = batch.tree
            if _accepts(self._backbone, "position_ids"):
                inputs["position_ids"] = batch.tree.position_ids_N[None]
        else:
            # Positions are left to the model: the plain path is the definition, and some count from an offset.
            # All ones: padding comes after everything that counts, and some models insist on a mask.
            inputs["attention_mask"] = torch.ones_like(batch.input_ids)
        return inputs

    @property
    def _backbone(self) -> nn.Module:
        return self.causal_lm.base_model

    def _own_logits(self, inputs: dict[str, Any], batch: Batch) -> Tensor:
        """Logits the model itself makes, only where a response token is predicted."""
        width = batch.input_ids.shape[1]
        if batch.input_ids.shape[0] == 1 and _accepts(self.causal_lm, "logits_to_keep"):
            return self.causal_lm(**inputs, logits_to_keep=batch.predicted_at_N).logits[0]
        if _accepts(self.causal_lm, "logits_to_keep"):
            columns = torch.unique(batch.predicted_at_N % width)
            logits = self.causal_lm(**inputs, logits_to_keep=columns).logits
            column = torch.searchsorted(columns, batch.predicted_at_N % width)
            return logits[batch.predicted_at_N // width, column]
        return self.causal_lm(**inputs).logits.flatten(0, 1)[batch.predicted_at_N]

    @torch.no_grad()
    def _check_head(self, batch: Batch) -> bool:
        """Whether the model's logits are exactly a linear map of its last hidden state (no soft-cap, no scaling)."""
        head = self.causal_lm.get_output_embeddings()
        if head is None or type(head) not in (nn.Linear, FastLinear) or self._backbone is self.causal_lm:
            return False
        inputs = self._inputs(lay_out_plain([_PROBE], self.device, self.pad_id))
        with self.attention("plain"):
            hidden = getattr(self._backbone(**inputs), "last_hidden_state", None)
            if hidden is None:
                return False
            own, ours = self.causal_lm(**inputs).logits, head(hidden)
        return own.shape == ours.shape and bool(torch.equal(own, ours) or _close(own, ours))

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write model and tokenizer in Hugging Face format; `AutoModelForCausalLM.from_pretrained` loads the folder."""
        with self.attention("plain"):  # the config on disk names the model's own attention
            cast(Any, self.model).save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


def _gather(
    groups: Sequence[TokenGroup],
    batch: Batch,
    token_logps_N: Tensor,
    found: dict[str, Tensor],
) -> Scores:
    counted_N = torch.where(batch.is_trained_N, token_logps_N, 0.0)
    logps_S = token_logps_N.new_zeros(batch.num_sequences).index_add(0, batch.sequence_N, counted_N)
    tokens_S = torch.zeros(batch.num_sequences, dtype=torch.long, device=logps_S.device)
    tokens_S = tokens_S.index_add(0, batch.sequence_N, batch.is_trained_N.long())
    widths = [len(group.responses) for group in groups]
    slot_S = torch.tensor(
        [row * max(widths) + column for row, width in enumerate(widths) for column in range(width)],
        device=logps_S.device,
    )
    shape = (len(widths), max(widths))
    flat = logps_S.new_zeros(shape[0] * shape[1])
    return Scores(
        logps_PK=flat.index_put((slot_S,), logps_S).view(shape),
        num_tokens_PK=torch.zeros_like(flat, dtype=torch.long).index_put((slot_S,), tokens_S).view(shape),
        is_valid_PK=torch.zeros_like(flat, dtype=torch.bool)
        .index_put((slot_S,), torch.ones_like(slot_S, dtype=torch.bool))
        .view(shape),
        token_logps_N=token_logps_N,
        sequence_N=batch.sequence_N,
        is_trained_N=batch.is_trained_N,
        statistics=found,
    )


def sums_by_response(scores: Scores, values_N: Tensor) -> Tensor:
    """Return a number per token (N,) summed over the trained tokens of each response, (P, K)."""
    counted_N = torch.where(scores.is_trained_N, values_N, 0.0)
    num_responses = int(scores.is_valid_PK.sum())
    sums_S = values_N.new_zeros(num_responses).index_add(0, scores.sequence_N, counted_N)
    return values_N.new_zeros(scores.is_valid_PK.shape).masked_scatter(scores.is_valid_PK, sums_S)


def _accepts(module: nn.Module, name: str) -> bool:
    import inspect

    return name in inspect.signature(module.forward).parameters


def _close(a: Tensor, b: Tensor) -> bool:
    # the same product over a different shape may round differently, in the last bits only
    gap, size = (a.cpu().double() - b.cpu().double()).abs(), b.cpu().double().abs().max()
    return bool((gap <= 64 * torch.finfo(a.dtype).eps * size).all())  # also False for what is not a number


def _probe_group() -> TokenGroup:
    from accord.data.tokens import TokenResponse

    return TokenGroup(prompt_ids=(0, 1, 2), responses=(TokenResponse(ids=(1, 0, 2, 1)),))


_PROBE = _probe_group()
