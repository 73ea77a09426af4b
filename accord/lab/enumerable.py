"""A world small enough to enumerate: every response, its reward and what raters think of it are known exactly.

Responses are the token sequences over a few content tokens, closed by EOS, so lengths differ; a policy is either a tree
of next-token distributions (autoregressive, like a language model) or one softmax over whole responses. Expectations
over raters and data are exact sums of weighted groups, so a population optimum can be reached to rounding.

Axes: P prompts, K responses (all of them), N inner nodes of the token tree, V vocabulary, G weighted groups. float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from accord.groups import ObjectiveResult, ScoredGroups, ScoredTokens

EOS = 0
"""Token id that ends a response; content tokens are 1, 2, …"""


@dataclass(frozen=True, kw_only=True)
class EnumerableWorld:
    """P prompts that share K possible responses, with a reference policy, a known reward and raters' opinions."""

    responses: tuple[tuple[int, ...], ...]  # token ids, EOS last
    reference_logps_PK: Float[Tensor, "P K"]  # sums to one over K
    reward_PK: Float[Tensor, "P K"]
    rater_frac_PKK: Float[Tensor, "P K K"]  # [p, i, j]: fraction of raters who prefer i to j; [i, j] + [j, i] = 1
    desirable_frac_PK: Float[Tensor, "P K"]  # fraction of raters who give a thumbs up

    @property
    def num_tokens_K(self) -> Int[Tensor, " K"]:
        """Lengths including EOS."""
        return torch.tensor([len(tokens) for tokens in self.responses])

    def chain(self) -> list[tuple[int, int]]:
        """Return K − 1 pairs that link all responses: their differences can take any values independently."""
        return [(index, index + 1) for index in range(len(self.responses) - 1)]

    def all_pairs(self) -> list[tuple[int, int]]:
        """Return the K(K − 1)/2 unordered pairs."""
        return list(itertools.combinations(range(len(self.responses)), 2))


def build_world(
    *, num_prompts: int = 2, num_content: int = 2, max_content: int = 2, bradley_terry: bool = True, seed: int = 0
) -> EnumerableWorld:
    """Return a random world: raters follow Bradley–Terry on the reward, or have no common scale at all."""
    generator = torch.Generator().manual_seed(seed)
    strings = [
        tokens
        for length in range(max_content + 1)
        for tokens in itertools.product(range(1, num_content + 1), repeat=length)
    ]
    responses = tuple((*tokens, EOS) for tokens in strings)
    num_responses = len(responses)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tree = TreePolicy(responses, num_prompts=num_prompts)
    with torch.no_grad():
        tree.logits_PNV.copy_(0.5 * draw(*tree.logits_PNV.shape))
    reward_PK = draw(num_prompts, num_responses)
    utility_PKK = reward_PK[:, :, None] - reward_PK[:, None, :]
    if not bradley_terry:
        noise_PKK = draw(num_prompts, num_responses, num_responses)
        utility_PKK = noise_PKK - noise_PKK.transpose(1, 2)
    return EnumerableWorld(
        responses=responses,
        reference_logps_PK=tree.logps_PK().detach(),
        reward_PK=reward_PK,
        rater_frac_PKK=torch.sigmoid(utility_PKK),
        desirable_frac_PK=torch.sigmoid(reward_PK),
    )


# Policies ------------------------------------------------------------------------------------------------------------


class TreePolicy(nn.Module):
    """An autoregressive policy as a table: one next-token distribution per prompt and prefix; starts uniform per node.

    A response of maximal length is closed by EOS by rule: that token has probability one and is counted in its length.
    """

    def __init__(self, responses: Sequence[tuple[int, ...]], *, num_prompts: int) -> None:
        super().__init__()
        max_tokens = max(len(tokens) for tokens in responses)
        prefixes = sorted({tokens[:end] for tokens in responses for end in range(min(len(tokens), max_tokens - 1))})
        num_tokens = 1 + max(token for tokens in responses for token in tokens)
        uses_KNV = torch.zeros(len(responses), len(prefixes), num_tokens, dtype=torch.float64)
        for index, tokens in enumerate(responses):
            for end in range(min(len(tokens), max_tokens - 1)):
                uses_KNV[index, prefixes.index(tokens[:end]), tokens[end]] = 1.0
        self.uses_KNV: Tensor
        self.register_buffer("uses_KNV", uses_KNV)
        self._nodes_K = [[prefixes.index(tokens[:end]) for end in range(min(len(tokens), max_tokens - 1))]
                         for tokens in responses]  # fmt: skip
        self._responses = tuple(responses)
        self.logits_PNV = nn.Parameter(torch.zeros(num_prompts, len(prefixes), num_tokens, dtype=torch.float64))

    def logps_PK(self) -> Float[Tensor, "P K"]:
        """Return log π(y|x) of every response: the sum of its tokens' log-probabilities along the tree."""
        return torch.einsum("pnv,knv->pk", self.logits_PNV.log_softmax(dim=-1), self.uses_KNV)

    def tokens(self, reference: TreePolicy) -> ScoredTokens:
        """Return every response token by token beside a reference: log-probabilities, log Σ π² and position KL.

        The EOS that closes a response of maximal length by rule has log-probability, log Σ π² and KL 0.
        """
        ours_PNV, theirs_PNV = (tree.logits_PNV.log_softmax(dim=-1) for tree in (self, reference))
        shape = (len(ours_PNV), len(self._responses), max(len(tokens) for tokens in self._responses))
        kl_PN = (theirs_PNV.exp() * (theirs_PNV - ours_PNV)).sum(dim=-1)
        found = {name: ours_PNV.new_zeros(shape) for name in ("policy", "reference", "log_sum_sq", "kl")}
        for k, (tokens, nodes) in enumerate(zip(self._responses, self._nodes_K, strict=True)):
            places, taken = (slice(None), k, slice(len(nodes))), torch.tensor(tokens[: len(nodes)], dtype=torch.long)
            found["policy"][places] = ours_PNV[:, nodes, taken]
            found["reference"][places] = theirs_PNV[:, nodes, taken].detach()
            found["log_sum_sq"][places] = torch.logsumexp(2 * ours_PNV[:, nodes], dim=-1).detach()
            found["kl"][places] = kl_PN[:, nodes]
        lengths_K = torch.tensor([len(tokens) for tokens in self._responses])
        return ScoredTokens(
            policy_logps_PKT=found["policy"],
            reference_logps_PKT=found["reference"],
            is_trained_PKT=(torch.arange(shape[2]) < lengths_K[:, None]).expand(shape),
            log_sum_sq_PKT=found["log_sum_sq"],
            position_kl_PKT=found["kl"],
        )

    def start_at(self, logps_PK: Float[Tensor, "P K"]) -> TreePolicy:
        """Set every node to the next-token distribution that a distribution over responses implies; return self."""
        mass_PNV = torch.einsum("pk,knv->pnv", logps_PK.exp(), self.uses_KNV)
        with torch.no_grad():
            self.logits_PNV.copy_(mass_PNV.log())
        return self


class SoftmaxPolicy(nn.Module):
    """One free logit per prompt and response."""

    def __init__(self, logps_PK: Float[Tensor, "P K"]) -> None:
        super().__init__()
        self.logits_PK = nn.Parameter(logps_PK.detach().clone())

    def logps_PK(self) -> Float[Tensor, "P K"]:
        """Return log π(y|x) of every response."""
        return self.logits_PK.log_softmax(dim=-1)


Policy = TreePolicy | SoftmaxPolicy


def tree_at_reference(world: EnumerableWorld) -> TreePolicy:
    """Return a tree policy that equals the reference."""
    return TreePolicy(world.responses, num_prompts=len(world.reward_PK)).start_at(world.reference_logps_PK)


# Populations: groups with their exact weights -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Population:
    """Groups and the probability with which the world produces each of them."""

    groups: ScoredGroups
    weight_G: Float[Tensor, " G"]

    def mean(self, result: ObjectiveResult) -> Float[Tensor, ""]:
        """Return the expected loss: Σ weight × loss / Σ weight × denominator, as the training loop reduces."""
        return (self.weight_G * result.loss_P).sum() / (self.weight_G * result.denominators()).sum()


def comparisons(
    world: EnumerableWorld,
    logps_PK: Float[Tensor, "P K"],
    pairs: Sequence[tuple[int, int]],
    *,
    tokens: ScoredTokens | None = None,
) -> Population:
    """Return every pair in both orders, each group K = 2 with the better response first, weighted by the raters.

    `tokens` holds the world's responses token by token, for objectives that read them.
    """
    better, worse = (torch.tensor(side) for side in zip(*pairs, *((j, i) for i, j in pairs), strict=True))
    both = torch.stack([better, worse], dim=1)  # (pairs × 2 orders, 2)
    return Population(
        groups=_select(
            world, logps_PK, both, preferred_22=torch.tensor([[False, True], [False, False]]), tokens=tokens
        ),
        weight_G=world.rater_frac_PKK[:, better, worse].flatten(),
    )


def labels(world: EnumerableWorld, logps_PK: Float[Tensor, "P K"], mismatched_kl: Float[Tensor, ""]) -> Population:
    """Return every response thumbed up and thumbed down, each group K = 1, weighted by the raters."""
    num_responses = len(world.responses)
    index_G1 = torch.arange(num_responses).repeat(2)[:, None]
    is_up_PG = (torch.arange(2 * num_responses) < num_responses).expand(len(world.reward_PK), -1)
    desirable_PK = is_up_PG.reshape(-1, 1)
    up_frac_PG = world.desirable_frac_PK.repeat(1, 2)
    return Population(
        groups=_select(world, logps_PK, index_G1, desirable_PK=desirable_PK, mismatched_kl=mismatched_kl),
        weight_G=torch.where(is_up_PG, up_frac_PG, 1.0 - up_frac_PG).flatten(),
    )


def demonstrations(
    world: EnumerableWorld, logps_PK: Float[Tensor, "P K"], data_frac_PK: Float[Tensor, "P K"]
) -> Population:
    """Return every response as a group K = 1 without judgement, weighted by how often the data holds it."""
    index_G1 = torch.arange(len(world.responses))[:, None]
    return Population(groups=_select(world, logps_PK, index_G1), weight_G=data_frac_PK.flatten())


def _select(
    world: EnumerableWorld,
    logps_PK: Tensor,
    index_GK: Int[Tensor, "G K"],
    *,
    preferred_22: Bool[Tensor, "2 2"] | None = None,
    desirable_PK: Bool[Tensor, "P 1"] | None = None,
    mismatched_kl: Tensor | None = None,
    tokens: ScoredTokens | None = None,
) -> ScoredGroups:
    """Return one group per prompt and row of `index_GK`, prompts outermost."""
    shape = (len(world.reward_PK) * len(index_GK), index_GK.shape[1])
    if tokens is not None:
        given = {item.name: value for item in fields(tokens) if (value := getattr(tokens, item.name)) is not None}
        chosen = {name: value[:, index_GK].reshape(*shape, -1) for name, value in given.items()}
        tokens = ScoredTokens(**chosen)
    return ScoredGroups(
        policy_logps_PK=logps_PK[:, index_GK].reshape(shape),
        reference_logps_PK=world.reference_logps_PK[:, index_GK].reshape(shape),
        num_tokens_PK=world.num_tokens_K[index_GK].repeat(len(world.reward_PK), 1),
        is_valid_PK=torch.ones(shape, dtype=torch.bool),
        preferred_PKK=None if preferred_22 is None else preferred_22.expand(shape[0], 2, 2),
        desirable_PK=desirable_PK,
        is_labelled_PK=None if desirable_PK is None else torch.ones_like(desirable_PK),
        mismatched_kl=mismatched_kl,
        tokens=tokens,
    )


def fit(policy: nn.Module, loss: Callable[[], Float[Tensor, ""]], *, max_steps: int = 500) -> None:
    """Minimise a population loss to rounding: full-batch L-BFGS with a line search, deterministic."""
    optimiser = torch.optim.LBFGS(
        policy.parameters(),
        max_iter=max_steps,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
