"""A reward model: the backbone of a language model with one number per response instead of a distribution per token.

It scores groups through the policy's own layouts, attention and checks. The head reads the hidden state of the last
trained token of a response, found by its index: padding and end-of-sequence marks are not searched for.

Axes: P groups, K responses (padded), S steps of a response (padded), N laid-out response positions, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import DataError, PolicyError
from accord.policy.head import Statistic
from accord.policy.layout import Batch
from accord.policy.load import Precision, first_line, load_parts, make_ready
from accord.policy.policy import Policy, Scores, log
from accord.policy.tokens.position_kl import Readout

Kind = Literal["response", "pair"]
SEPARATOR = "\n\n"
"""What stands between the two responses that a joint model is shown."""
_ABOUT = "accord_reward.json"


class RewardModel(Policy):
    """A model whose scalar head scores responses ("response") or ordered pairs of them ("pair"). See `load_reward`.

    The model is transformers' own for sequence classification, so that what is saved is what others load.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: Kind = "response",
        path: str = "",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, tokenizer, path=path, autocast=autocast)
        self.kind: Kind = kind
        # in 16 bits, a difference of scores has 8; and small steps of a head trained beside adapters would be lost
        head = cast(nn.Module, self.causal_lm.score)
        head.to(torch.promote_types(next(head.parameters()).dtype, torch.float32))
        self._head = [head]  # in a list: it is the model's, and not to be listed as another module
        self._direction_H: Tensor | None = None

    @property
    def starts_at_zero(self) -> bool:
        """Whether the head is all zeros, so that every score is 0 and every objective at its known start."""
        return not any(bool(parameter.any()) for parameter in self._head[0].parameters())

    def sample(self, *_: Any, **__: Any) -> NoReturn:
        """Raise PolicyError: a reward model has no vocabulary."""
        raise PolicyError("got a reward model to sample from — expected a language model")

    # -- scoring -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        groups: Sequence[TokenGroup],
        *,
        statistics: Sequence[Statistic] = (),
        layout: str | None = None,
        reference: Readout | None = None,
        with_entropy: bool = False,
    ) -> Scores:
        """Score groups, all responses of a prompt in one pass; `layout` overrides the choice for one call (checks).

        `statistics`, `reference` and `with_entropy` are of next-token distributions; a reward model has none and makes
        none. An empty response is scored at the prompt's last token. Step scores are made where responses say where
        their steps end.
        """
        shown = [self.lay_open(group) for group in groups]
        batch, used = self._lay_out(shown, layout)
        with self.attention(used), self.precision():
            hidden_NH = self._hidden(batch)
        scores = self._scores(groups)
        if layout is not None:  # a check of layouts: the head may be zero and see no difference
            scores = replace(scores, token_logps_N=self._probe(hidden_NH), sequence_N=batch.sequence_N)
        if self.kind == "pair":
            return replace(scores, pair_score_PKK=self._pair_scores(groups, hidden_NH))
        responses = [response for group in groups for response in group.responses]
        starts = [0]
        for response in responses:
            starts.append(starts[-1] + len(response.ids) + 1)  # one position more: that of the token before it
        ends = [start + _last_trained(response) + 1 for start, response in zip(starts, responses, strict=False)]
        score_PK = _by_group(self._score(hidden_NH, ends), [len(group.responses) for group in groups])
        return replace(scores, score_PK=score_PK, step_score_PKS=self._step_scores(groups, hidden_NH, starts))

    def token_scores(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Return the score before each response token (N,), in (group, response, token) order: as a critic's values."""
        batch, layout = self._lay_out(groups, None)
        with self.attention(layout), self.precision():
            hidden_NH = self._hidden(batch)
            return self._score(hidden_NH, range(len(hidden_NH)))

    def token_logps(
        self, batch: Batch, statistics: Sequence[Statistic] = (), readout: Readout | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what checks of layouts compare, (N,): a fixed mixture of hidden states, as the head may be zero."""
        return self._probe(self._hidden(batch)), {}

    def lay_open(self, group: TokenGroup) -> TokenGroup:
        """Return the group as it is laid out: each sequence with one more token, for the last is only ever a target."""
        responses = group.responses
        if self.kind == "pair":
            responses = [
                TokenResponse(ids=responses[i].ids + self.separator_ids + responses[j].ids)
                for i, j in _ordered_pairs(len(responses))
            ]
        return TokenGroup(
            prompt_ids=group.prompt_ids,
            responses=tuple(TokenResponse(ids=(*response.ids, self.pad_id)) for response in responses),
        )

    def sized(self, group: TokenGroup) -> TokenGroup:
        """Return the group with the tokens a joint model lays out for it. Raises DataError where they do not fit."""
        if self.kind == "response":
            return group
        shown = self.lay_open(group)
        longest = len(group.prompt_ids) + max(len(response.ids) for response in shown.responses) - 1
        window = getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(window, int) and longest > window:
            raise DataError(
                f"{group.source.origin if group.source else 'a group'}: a prompt and two responses are {longest} "
                f"tokens, and a joint model reads both — expected at most its {window} — set a smaller data.max_tokens"
            )
        return replace(group, num_laid_out=shown.num_tokens - len(shown.responses))

    @property
    def separator_ids(self) -> tuple[int, ...]:
        """The ids between the two responses that a joint model is shown."""
        encoded = self.tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
        found = tuple(cast(list[int], encoded)) or (self.tokenizer.eos_token_id,)
        return tuple(token for token in found if isinstance(token, int))

    def _hidden(self, batch: Batch) -> Tensor:
        """Return last hidden states (N, H), for each sequence: of the prompt's end, then of its tokens but the last."""
        return self._backbone(**self._inputs(batch)).last_hidden_state.flatten(0, 1)[batch.predicted_at_N]

    def _score(self, hidden_NH: Tensor, places: Sequence[int]) -> Tensor:
        """Apply the head at some positions, in float32 or wider."""
        head = self._head[0]
        chosen = hidden_NH[torch.tensor(places, dtype=torch.long, device=hidden_NH.device)]
        with torch.autocast(self.device.type, enabled=False):
            return head(chosen.to(next(head.parameters()).dtype)).squeeze(-1)

    def _step_scores(self, groups: Sequence[TokenGroup], hidden_NH: Tensor, starts: Sequence[int]) -> Tensor | None:
        responses = [response for group in groups for response in group.responses]
        if not any(response.step_ends for response in responses):
            return None
        places = [
            start + end + 1
            for start, response in zip(starts, responses, strict=False)
            for end in response.step_ends
        ]  # fmt: skip
        found = self._score(hidden_NH, places).split([len(response.step_ends) for response in responses])
        by_response = pad_sequence(list(found), batch_first=True)  # (responses, S)
        return _by_group(by_response, [len(group.responses) for group in groups])

    def _pair_scores(self, groups: Sequence[TokenGroup], hidden_NH: Tensor) -> Tensor:
        width = max(len(group.responses) for group in groups)
        places, slots, position = [], [], -1
        for row, group in enumerate(groups):
            for i, j in _ordered_pairs(len(group.responses)):
                length = len(group.responses[i].ids) + len(self.separator_ids) + len(group.responses[j].ids)
                position += length + 1
                places.append(position)
                slots.append((row * width + i) * width + j)
        logits = self._score(hidden_NH, places)
        flat = logits.new_zeros(len(groups) * width * width)
        filled = flat.index_put((torch.tensor(slots, device=flat.device),), logits)
        return filled.view(len(groups), width, width)

    def _probe(self, hidden_NH: Tensor) -> Tensor:
        if self._direction_H is None:
            draw = torch.randn(hidden_NH.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self._direction_H = draw / draw.norm()
        wide_NH = hidden_NH.to(torch.promote_types(hidden_NH.dtype, torch.float32))
        return wide_NH @ self._direction_H.to(wide_NH)

    def _scores(self, groups: Sequence[TokenGroup]) -> Scores:
        """Return what every score comes with; without log-probabilities, which are 0."""
        counts = [torch.tensor([response.num_trained for response in group.responses]) for group in groups]
        num_tokens_PK = pad_sequence(counts, batch_first=True).to(self.device)
        is_valid_PK = pad_sequence([torch.ones_like(count) for count in counts], batch_first=True).bool()
        dtype = next(self._head[0].parameters()).dtype
        none_N = torch.zeros(0, device=self.device, dtype=dtype)
        return Scores(
            logps_PK=torch.zeros(num_tokens_PK.shape, device=self.device, dtype=dtype),
            num_tokens_PK=num_tokens_PK,
            is_valid_PK=is_valid_PK.to(self.device),
            token_logps_N=none_N,
            sequence_N=none_N.long(),
            is_trained_N=none_N.bool(),
        )

    # -- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write model and tokenizer, for `AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)`.

        That class looks for the last token that is not padding; where the tokenizer pads with its end of sequence it
        would look past it, so such a folder names no padding and is scored there one text at a time.
        """
        pad, config = self.tokenizer.pad_token_id, self.causal_lm.config.get_text_config()
        is_apart = isinstance(pad, int) and pad != self.tokenizer.eos_token_id
        if not is_apart:
            log.warning("the tokenizer has no padding of its own: transformers will score one text at a time, not more")
        config.pad_token_id = pad if is_apart else None
        super().save(folder)
        (Path(folder) / _ABOUT).write_text(json.dumps({"scores": self.kind}))


def load_reward(
    path: str | Path,
    *,
    kind: Kind | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    lora_targets: str = "all-linear",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load a reward model, or make one of a language model: its backbone with a head of zeros.

    A folder for `AutoModelForSequenceClassification` with one label keeps its head. `kind`: what the head scores;
    None = what the folder was trained for, "response" where it does not say. The other settings are those of
    `load_policy`; with `lora_rank` the head is trained beside the adapters. Raises PolicyError as `load_policy` does,
    for a model without a linear scalar head, and for a folder trained for the other kind.
    """
    model, tokenizer, source = load_parts(
        path, _load_scorer, task_type="SEQ_CLS", precision=precision, device=device, lora_rank=lora_rank,
        lora_alpha=lora_alpha, lora_targets=lora_targets, revision=revision, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    about = Path(source) / _ABOUT
    trained_for: Kind | None = json.loads(about.read_text())["scores"] if about.is_file() else None
    if kind is not None and trained_for is not None and kind != trained_for:
        raise PolicyError(
            f"got {source}, which scores each {trained_for} — expected a model that scores each {kind}, or a language "
            "model to make one of"
        )
    reward = RewardModel(
        model, tokenizer, kind=kind or trained_for or "response", path=source,
        autocast=torch.bfloat16 if precision == "mixed" else None,
    )  # fmt: skip
    return make_ready(reward, gradient_checkpointing=gradient_checkpointing, compile=compile)


def _load_scorer(source: str, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model for sequence classification with one label; a head that the folder lacks is of zeros."""
    from safetensors import SafetensorError

    try:
        model, report = cast(
            tuple[PreTrainedModel, dict[str, Any]],
            AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, dtype=dtype, output_loading_info=True, **options
            ),
        )
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise PolicyError(
            f"{source} could not be loaded as a reward model: {first_line(error)} — expected a language model that "
            "transformers can classify sequences with, or a folder of such a classifier with one label"
        ) from error
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise PolicyError(
            f"{type(model).__name__} has no linear head named score — expected a causal model of that kind"
        )
    missing = sorted(report.get("missing_keys") or ())
    of_head = [name for name in missing if name.startswith("score.")]
    if len(missing) > len(of_head):  # transformers fills them with random numbers and goes on
        lost = [name for name in missing if name not in of_head]
        raise PolicyError(
            f"{source} lacks {len(lost)} weights ({', '.join(lost[:3])}, …) — expected a complete model; it is "
            "half-written or of another architecture"
        )
    if of_head:
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return model


def _last_trained(response: TokenResponse) -> int:
    """Return the index of the last trained token; −1 without one, which is the last token of the prompt."""
    if response.is_trained is None:
        return len(response.ids) - 1
    return max((index for index, is_trained in enumerate(response.is_trained) if is_trained), default=-1)


def _ordered_pairs(num_responses: int) -> list[tuple[int, int]]:
    """Return the pairs (first shown, second shown); a single response is set against itself."""
    return list(permutations(range(num_responses), 2)) or [(0, 0)]


def _by_group(values: Tensor, widths: Sequence[int]) -> Tensor:
    """Return values of all responses, in order, as (P, K, …), 0 in padding slots."""
    return pad_sequence(list(values.split(list(widths))), batch_first=True)
