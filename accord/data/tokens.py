"""What the policy sees of a group: token ids, known by construction where the prompt ends and what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from accord.records import Group, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTokens:
    """What is known of a response that the policy sampled, one number per token; None = nobody asked."""

    # nats, as the trained model scored it before any update; None = its next pass is before any update
    old_logps: tuple[float, ...] | None = None
    sampler_logps: tuple[float, ...] | None = None  # nats, of the distribution actually sampled from
    reference_logps: tuple[float, ...] | None = None  # nats; None = to be asked for at each pass
    advantages: tuple[float, ...] | None = None
    returns: tuple[float, ...] | None = None  # the critic's targets
    old_values: tuple[float, ...] | None = None  # what the critic said before any update
    was_truncated: bool = False  # stopped by the length limit
    is_own: bool = True  # the policy's; False = of the opponent it is set against


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResponse:
    """One response as token ids. `is_trained` is None when every token is (the usual case)."""

    ids: tuple[int, ...]  # incl. the end-of-sequence token when `has_eos`
    is_trained: tuple[bool, ...] | None = None  # False e.g. for user turns inside a multi-turn response
    has_eos: bool = False
    was_truncated: bool = False
    weights: tuple[float, ...] | None = None  # one per token, given with the data; None = 1 each
    is_kept: tuple[bool, ...] | None = None  # shared with the other version of the response; None = not aligned
    critical: tuple[float, ...] | None = None  # in [0, 1], of two further models; None = not asked
    rollout: RolloutTokens | None = None
    step_ends: tuple[int, ...] = ()  # where its steps were judged one by one: the index of the last token of each

    @property
    def num_trained(self) -> int:
        """Number of tokens that count in the log-probability."""
        return len(self.ids) if self.is_trained is None else sum(self.is_trained)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGroup:
    """A prompt's ids (never empty: at least a start token) and its K responses' ids, with the judgements unchanged."""

    prompt_ids: tuple[int, ...]
    responses: tuple[TokenResponse, ...]
    judgements: tuple[Judgement, ...] = ()
    index: int = 0  # position in the data set: stable over runs, names the per-example rows
    source: Group | None = field(default=None, compare=False, repr=False)
    num_laid_out: int | None = field(default=None, compare=False)  # where a model lays out more than this: joint scores

    @property
    def num_tokens(self) -> int:
        """Tokens in the tree layout: the prompt once and every response once."""
        if self.num_laid_out is not None:
            return self.num_laid_out
        return len(self.prompt_ids) + sum(len(response.ids) for response in self.responses)
