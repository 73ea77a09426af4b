"""The gold reward of the text world as a source of feedback, and requests as prompts: for runs that sample."""

from __future__ import annotations

from collections.abc import Sequence

from accord.feedback.findings import Finding
from accord.lab.annotators import response_text
from accord.lab.text_world import Request, gold_reward, parse_request, render_request, user_prompt
from accord.records import FinishReason, Group, Response, Text


class GoldReward:
    """What an answer is really worth; an answer that did not end by itself is worth less. Prompts are requests."""

    name = "gold"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return the gold reward of every response."""
        return [
            [
                Finding(
                    score=gold_reward(
                        request, response_text(response), has_eos=response.finish_reason is FinishReason.STOP
                    )
                )
                for response in group.responses
            ]
            for group in groups
            for request in [parse_request(_asked(group.prompt))]
        ]


def _asked(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].content


def request_prompts(requests: Sequence[Request]) -> list[Group]:
    """Return requests as groups to sample on, without an answer yet."""
    return [
        Group(prompt=user_prompt(render_request(request)), responses=(Response(content=""),), origin=f"request:{row}")
        for row, request in enumerate(requests)
    ]
