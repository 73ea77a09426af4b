"""A reward that reads a critique first: one model writes what is good and bad about a response, another scores both.

Source: MM-RLHF, Zhang et al. 2025, arXiv:2502.10391. There both heads share a backbone; here they are two models, each
trained by a verb that exists: the critic by `accord sft` on `critique_demonstrations`, the scorer by `accord reward` on
`with_critiques`, which shows it the critiques that people wrote (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accord.data import select_responses
from accord.errors import DataError
from accord.feedback.findings import Finding, Reward
from accord.records import Critique, FinishReason, Group, Message, Response, Text

if TYPE_CHECKING:
    from accord.policy.policy import Policy
    from accord.policy.sampling import SamplingSettings

REQUEST = "What is good and what is bad about this answer?"
HEADING = "\n\nCritique: "


def critique_demonstrations(groups: Sequence[Group]) -> list[Group]:
    """Return a group per critique: the request and the answer as prompt, the critique as response.

    Raises DataError where no response has a critique.
    """
    found = [
        Group(prompt=_asked(group, critique.response), responses=(_said(group, critique.text),), origin=group.origin)
        for group in groups
        for critique in _critiques(group).values()
    ]
    return found or _refuse(groups)


def with_critiques(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with each response followed by its critique; responses without one are left out.

    Judgements stay with their responses; a group in which nothing is left to compare goes. Raises DataError where no
    response has a critique.
    """
    shown = []
    for group in groups:
        critiques = _critiques(group)
        responses = tuple(
            _followed(response, critiques[place].text) if place in critiques else response
            for place, response in enumerate(group.responses)
        )
        judgements = tuple(judgement for judgement in group.judgements if not isinstance(judgement, Critique))
        kept = select_responses(replace(group, responses=responses, judgements=judgements), sorted(critiques))
        shown += [kept] if kept is not None else []
    return shown or _refuse(groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueReward:
    """Lets `critic` write a critique of each response, then `scorer` score the response followed by it.

    The critique is the finding's reason. A critique cut off by the token limit makes the score unknown: the scorer has
    seen whole ones only.
    """

    critic: Policy
    scorer: Reward
    sampling: SamplingSettings
    chat_template: str = "auto"
    name: str = "critique"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return a finding per response."""
        from accord.policy.sampling import answer_prompts

        asked = [
            Group(prompt=_asked(group, place), responses=(Response(token_ids=()),))
            for group in groups
            for place in range(len(group.responses))
        ]
        written = iter(answer_prompts(self.critic, asked, self.sampling, chat_template=self.chat_template))
        critiques = [[next(written).responses[0] for _ in group.responses] for group in groups]
        shown = [
            replace(
                group, judgements=(),
                responses=tuple(_followed(r, str(c.content)) for r, c in zip(group.responses, row, strict=True)),
            )
            for group, row in zip(groups, critiques, strict=True)
        ]  # fmt: skip
        return [
            [_with_reason(finding, critique) for finding, critique in zip(found, row, strict=True)]
            for found, row in zip(self.scorer(shown), critiques, strict=True)
        ]


def _with_reason(finding: Finding, critique: Response) -> Finding:
    if critique.finish_reason is FinishReason.LENGTH:
        return Finding(score=None, reason=f"the critique was cut off: {critique.content}")
    return finding if finding.score is None else replace(finding, reason=str(critique.content))


def _critiques(group: Group) -> dict[int, Critique]:
    """Return the first critique of each response that has one."""
    found: dict[int, Critique] = {}
    for judgement in group.judgements:
        if isinstance(judgement, Critique):
            found.setdefault(judgement.response, judgement)
    return found


def _asked(group: Group, place: int) -> Text:
    content = group.responses[place].content
    if content is None:
        raise DataError(f"{group.origin or 'a group'}: got token ids without text — expected text to write about")
    if isinstance(group.prompt, str) and isinstance(content, str):
        return f"{group.prompt}{content}\n\n{REQUEST}{HEADING}"
    return (*_turns(group.prompt, "user"), *_turns(content, "assistant"), Message(role="user", content=REQUEST))


def _said(group: Group, text: str) -> Response:
    is_text = isinstance(group.prompt, str) and all(isinstance(r.content, str) for r in group.responses)
    return Response(content=text if is_text else (Message(role="assistant", content=text),))


def _followed(response: Response, critique: str) -> Response:
    """Return a response as the scorer reads it; token ids and what is known of them go, for they say less."""
    content = response.content
    if content is None:
        raise DataError("got a response of token ids without text — expected text, for a critique to follow it")
    if isinstance(content, tuple):
        *before, last = content
        text: Text = (*before, replace(last, content=f"{last.content}{HEADING}{critique}"))
    else:
        text = f"{content}{HEADING}{critique}"
    return Response(content=text, source=response.source, finish_reason=FinishReason.STOP)


def _turns(text: Text, role: str) -> tuple[Message, ...]:
    return text if isinstance(text, tuple) else (Message(role=role, content=text),)


def _refuse(groups: Sequence[Group]) -> list[Group]:
    raise DataError(
        f"got {len(groups)} groups without a critique to learn from — expected judgements of the kind critique, as "
        "people and `accord judge --prompt critique_then_score.v1` write them"
    )
