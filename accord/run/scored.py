"""From token groups to what an objective sees: the one road of training, evaluation and rollouts.

Axes: P groups, K responses. What an objective needs besides the log-probabilities of its own micro-batch (a batch-wide
estimate, the rest of the batch, its own state, randomness) is put together here, so that the loop knows no names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from accord.data.batching import micro_batches
from accord.data.tokens import TokenGroup
from accord.groups import ObjectiveResult, ScoredGroups, concatenate_groups
from accord.objectives import Need, ObjectiveSpec
from accord.policy.head import Statistic
from accord.policy.judgements import Populations, behaviour_logps, to_scored_groups
from accord.policy.mismatched import mismatched_groups
from accord.policy.moving_reference import MovingReference
from accord.policy.policy import Policy, Scores, sums_by_response
from accord.policy.prompt_embedding import prompt_embeddings
from accord.policy.reference import Reference
from accord.policy.reward import RewardModel
from accord.policy.tokens.scored import recorded_logps, to_scored_tokens
from accord.policy.value_heads import ValueLearner
from accord.run.held_out.answers import Answers, Gather

T = TypeVar("T")
OF_TOKENS = {
    Need.TOKENS, Need.TOKEN_WEIGHTS, Need.EDITS, Need.LOG_SUM_SQ, Need.POSITION_KL, Need.CRITICAL,
    Need.ADVANTAGES, Need.SAMPLER_LOGPS, Need.VALUES, Need.ENTROPY, Need.Q_VALUES,
}  # fmt: skip
"""What objectives are shown as `ScoredGroups.tokens`."""
_REFERENCE = "reference/"  # before the names of its weights among what moves


_HELD_OUT_BATCH = 64  # groups, as in training by default


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What belongs to a whole optimisation batch."""

    visit: int  # the optimiser step, or −1 in evaluation: with the seed it fixes all draws
    mismatched_kl: Tensor | None = None
    batch: ScoredGroups | None = None  # None = the micro-batch is the batch


@dataclass(kw_only=True)
class Scoring:
    """Scores groups under an objective's row. `share` is (rank, processes); `gather` joins lists of all processes."""

    policy: Policy
    spec: ObjectiveSpec
    settings: dict[str, Any]
    reference: Reference | None
    seed: int = 0
    share: tuple[int, int] = (0, 1)
    gather: Gather = lambda parts: parts
    state: dict[str, Tensor] = field(default_factory=dict)  # of `spec.state`; moves once per optimiser step
    populations: Populations = field(default_factory=Populations)  # judges and strata of the run's groups
    moving_reference: MovingReference | None = None  # asked in training instead of the fixed one
    judge: RewardModel | None = None  # scores answers to held-out prompts
    answers: Answers = field(default_factory=Answers)  # how held-out prompts are answered
    temperature: float | None = None  # to score at, where it is not the policy's own
    keeps_reference: bool = True  # False where texts are sampled: they hardly come again

    def __post_init__(self) -> None:
        self.start = self.state  # `take_up` moves the state of a resumed run, never this

    def facts(self, batch: Sequence[TokenGroup], *, visit: int, max_tokens: int, is_split: bool) -> BatchFacts:
        """Return what the objective needs of the whole batch; every process must call. No gradient."""
        needs = self.spec.needs
        baseline = self._mismatched_kl(batch, max_tokens, visit) if Need.MISMATCHED_KL in needs else None
        facts = BatchFacts(visit=visit, mismatched_kl=baseline)
        if Need.BATCH in needs and is_split:
            facts = replace(facts, batch=self._whole(batch, facts, max_tokens))
        return facts

    def held_out_batches(self, groups: Sequence[TokenGroup]) -> list[Sequence[TokenGroup]]:
        """Return what evaluation takes for batches: all groups at once, unless the objective compares within a batch.

        Then their size is fixed: the loss must depend neither on the token budget nor on how much is held out.
        """
        size = _HELD_OUT_BATCH if Need.BATCH in self.spec.needs else max(1, len(groups))
        return [groups[start : start + size] for start in range(0, len(groups), size)]

    def held_out_facts(self, batch: Sequence[TokenGroup] = (), max_tokens: int = 0) -> BatchFacts:
        """Return what stands for them in evaluation: z0 as at the start of training; every process must call.

        Without a batch each pass is one of its own.
        """
        baseline = torch.zeros((), device=self.policy.device) if Need.MISMATCHED_KL in self.spec.needs else None
        facts = BatchFacts(visit=-1, mismatched_kl=baseline)
        if Need.BATCH in self.spec.needs and batch:
            facts = replace(facts, batch=self._whole(batch, facts, max_tokens))
        return facts

    def score(
        self,
        groups: Sequence[TokenGroup],
        facts: BatchFacts,
        *,
        places: Sequence[int] | None = None,
        module: nn.Module | None = None,
        statistics: Sequence[Statistic] = (),
    ) -> tuple[Scores, ScoredGroups]:
        """Score groups that lie at `places` of the batch; `module` is the policy inside a wrapper for many devices."""
        needs, reference = self.spec.needs, self._reference_at(facts.visit) if self.spec.reference else None
        if Need.LOG_SUM_SQ in needs and "log_sum_sq" not in statistics:
            statistics = (*statistics, "log_sum_sq")
        # before the policy's own pass: a reference may put other values in the policy's place while it is read
        readout = reference.readout(groups) if reference is not None and Need.POSITION_KL in needs else None
        with self._at_temperature():
            scores = (module or self.policy)(
                groups, statistics=statistics, reference=readout, with_entropy=Need.ENTROPY in needs
            )
        recorded_N = recorded_logps(groups, "reference_logps", scores.token_logps_N)
        keep = self.keeps_reference
        reference_PK = None
        if recorded_N is not None and self.spec.reference:
            reference_PK = sums_by_response(scores, recorded_N)
        elif reference is not None:
            reference_PK = reference.logps(groups, scores.logps_PK, keep=keep)
        scored = to_scored_groups(groups, scores, reference_PK, facts.mismatched_kl)
        if needs & OF_TOKENS:
            reference_N = recorded_N
            if reference_N is None and reference is not None and reference.level == "token":
                reference_N = reference.token_logps(groups, scores.token_logps_N, keep=keep)
            scored = replace(scored, tokens=to_scored_tokens(groups, scores, reference_N))
        return scores, self._with_facts(scored, groups, facts, places)

    def result(self, scored: ScoredGroups) -> ObjectiveResult:
        """Return the objective's loss of scored groups."""
        return self.spec.fn(scored, **self.settings)

    def advance(self, sums: dict[str, Tensor]) -> None:
        """Move the objective's state by one optimiser step, from its sums over the batch."""
        if self.spec.state is not None and sums:
            self.state = self.spec.state.advance(self.state, sums, **self.settings)

    def follow(self, step: int) -> None:
        """Let what follows the policy move after a step: a reference by its rule, targets of values by their share."""
        if isinstance(self.policy, ValueLearner):
            self.policy.follow()
        if self.moving_reference is not None:
            self.moving_reference.follow(step)

    def what_moves(self) -> dict[str, Tensor]:
        """Return every tensor, besides the policy's own, that moves with the steps: for a checkpoint."""
        reference = self.moving_reference.weights if self.moving_reference is not None else {}
        return self.state | {f"{_REFERENCE}{name}": tensor for name, tensor in reference.items()}

    def take_up(self, moved: dict[str, Tensor]) -> None:
        """Put what a checkpoint held in place."""
        self.state = {name: tensor for name, tensor in moved.items() if not name.startswith(_REFERENCE)}
        if self.moving_reference is not None:
            self.moving_reference.restore(
                {name.removeprefix(_REFERENCE): tensor for name, tensor in moved.items() if name not in self.state}
            )

    # -- parts -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _at_temperature(self) -> Iterator[None]:
        before = self.policy.temperature
        self.policy.temperature = before if self.temperature is None else self.temperature
        try:
            yield
        finally:
            self.policy.temperature = before

    def _reference_at(self, visit: int) -> Reference | None:
        # held-out groups are compared with the start throughout, so that evaluations of one run can be compared
        return self.moving_reference if self.moving_reference is not None and visit >= 0 else self.reference

    def _with_facts(
        self, scored: ScoredGroups, groups: Sequence[TokenGroup], facts: BatchFacts, places: Sequence[int] | None
    ) -> ScoredGroups:
        device, more = scored.num_tokens_PK.device, {}
        if Need.BEHAVIOUR in self.spec.needs:
            more["behaviour_logps_PK"] = behaviour_logps(groups, scored.policy_logps_PK)
        if Need.PROMPT_EMBEDDINGS in self.spec.needs:
            more["prompt_embedding_PE"] = prompt_embeddings(self.policy, groups)
        if Need.DRAWS in self.spec.needs:
            seeds = [_draw_seed(self.seed, facts.visit, group.index) for group in groups]
            more["draw_seed_P"] = torch.tensor(seeds, device=device)
        if Need.VOTES in self.spec.needs | self.spec.reads:
            more["votes"] = self.populations.votes_of(groups, device)
        if Need.STRATA in self.spec.needs | self.spec.reads:
            more |= self.populations.strata_of(groups, scored.policy_logps_PK, held_out=facts.visit < 0)
        if self.spec.state is not None:
            # held out, the state is as at the start: a loss that moves with it could not be compared between steps
            state = self.start if facts.visit < 0 else self.state
            more["state"] = {name: value.to(device) for name, value in state.items()}
        if Need.BATCH in self.spec.needs:
            alone = replace(scored, **more | {"state": None})  # where the micro-batch is the batch
            more["batch"] = facts.batch if facts.batch is not None else _moved(alone, "detach")
            more["place_P"] = torch.tensor(
                list(places) if facts.batch is not None and places is not None else range(len(groups)), device=device
            )
        return replace(scored, **more) if more else scored

    @torch.no_grad()
    def _whole(self, batch: Sequence[TokenGroup], facts: BatchFacts, max_tokens: int) -> ScoredGroups:
        """Score the whole batch without gradient, each process its share, and join it in the batch's order."""
        rank, world = self.share
        found: list[tuple[list[int], ScoredGroups]] = []
        for places in micro_batches(batch, max_tokens, layout=self.policy.layout)[rank::world]:
            _, scored = self.score([batch[place] for place in places], replace(facts, batch=None))
            found.append((list(places), _moved(replace(scored, batch=None, place_P=None, state=None), "cpu")))
        parts = self.gather(found)
        order = torch.tensor([place for places, _ in parts for place in places]).argsort()
        joined = concatenate_groups([scored for _, scored in parts])
        return _moved(_mapped(joined, lambda x: x[order] if x.ndim else x), "to", self.policy.device)

    @torch.no_grad()
    def _mismatched_kl(self, batch: Sequence[TokenGroup], max_tokens: int, visit: int) -> Tensor:
        """Estimate KL(policy ‖ reference), nats ≥ 0, from prompts joined with another prompt's response."""
        reference = self._reference_at(visit)
        assert reference is not None
        rank, world = self.share
        sums: list[tuple[float, int]] = []
        pairs = mismatched_groups(batch)
        for part in micro_batches(pairs, max_tokens, layout=self.policy.layout)[rank::world]:
            groups = [pairs[index] for index in part]
            logps_PK = self.policy.score(groups).logps_PK
            log_ratio_PK = logps_PK - reference.logps(groups, logps_PK, keep=False)
            sums.append((float(log_ratio_PK.cpu().double().sum()), len(groups)))
        joined = self.gather(sums)
        mean = sum(value for value, _ in joined) / max(1, sum(count for _, count in joined))
        return torch.tensor(max(0.0, mean), device=self.policy.device)


def start_state(spec: ObjectiveSpec, settings: dict[str, Any], populations: Populations) -> dict[str, Tensor]:
    """Return the state an objective starts with for these judges and strata; empty where it has none."""
    if spec.state is None:
        return {}
    return spec.state.start(num_judges=len(populations.judges), num_strata=len(populations.strata), **settings)


MAX_REPORTED_ENTRIES = 32


def describe_state(spec: ObjectiveSpec, state: dict[str, Tensor], populations: Populations) -> dict[str, float]:
    """Return the numbers of an objective's state by name, `state/reliability/<judge>`; a larger tensor is left out."""
    if spec.state is None:
        return {}
    names = {"judge": populations.judges, "stratum": populations.strata}
    found: dict[str, float] = {}
    for key, value in state.items():
        if value.ndim == 0:
            found[f"state/{key}"] = value.item()
        elif value.numel() <= MAX_REPORTED_ENTRIES:
            given = names.get(spec.state.entries.get(key, ""), ())
            entries = value.flatten().tolist()
            labels = given if len(given) == len(entries) else range(len(entries))
            found |= {f"state/{key}/{label}": entry for label, entry in zip(labels, entries, strict=True)}
    return found


def add_state_sums(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add up the `state_sums` of micro-batches and processes, in float64 on the CPU."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            value = value.detach().cpu().double()
            total[name] = total[name] + value if name in total else value
    return total


def _draw_seed(seed: int, visit: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{visit}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # a non-negative int64


def _moved(record: ScoredGroups, method: str, *arguments: Any) -> ScoredGroups:
    return _mapped(record, lambda tensor: getattr(tensor, method)(*arguments))


def _mapped(record: T, change: Callable[[Tensor], Tensor]) -> T:
    """Apply a change to every tensor of a record and of the records inside it."""
    changed: dict[str, Any] = {}
    for name in (item.name for item in fields(record)):  # type: ignore[arg-type]  # a dataclass, whichever
        value = getattr(record, name)
        if isinstance(value, Tensor):
            changed[name] = change(value)
        elif is_dataclass(value):
            changed[name] = _mapped(value, change)
    return replace(record, **changed)  # type: ignore[type-var]  # a dataclass, as above
