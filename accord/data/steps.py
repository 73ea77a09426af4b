"""Where the steps of a response end, for judgements of single steps: known by construction, like every boundary.

Each step is a segment of its own, tokenised by itself, so that no token spans two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.data.readers.converters import STEP_SEPARATOR
from accord.data.templates import RenderedGroup, Segment
from accord.errors import DataError
from accord.records import Group, Label, Text


def cut_at_steps(rendered: RenderedGroup, group: Group) -> RenderedGroup:
    """Return the rendered group with a segment for each step of the responses whose steps were judged.

    The last step ends with the response, so that an end of sequence belongs to it. Raises DataError where a label names
    a step that is not there, and where the template changed the text that the steps are looked for in.
    """
    judged = {
        judgement.response
        for judgement in group.judgements
        if isinstance(judgement, Label) and judgement.step is not None
    }
    if not judged:
        return rendered
    responses = list(rendered.responses)
    for position in judged:
        steps = steps_of(group, position)
        if steps and responses[position]:
            responses[position] = _cut(responses[position], steps)
    return replace(rendered, responses=tuple(responses))


def steps_of(group: Group, position: int) -> tuple[str, ...]:
    """Return the texts of a response's steps, each with the separator behind it; none for sampled token ids.

    `extra["steps"]` says them where the group has one response, as the stepwise format does; else the text is cut at
    the separator.
    """
    text = _text(group.responses[position].content)
    if text is None:
        return ()
    separator = group.extra.get("step_separator") or STEP_SEPARATOR
    steps = list(group.extra.get("steps") or ())
    if len(group.responses) > 1 or separator.join(steps) != text:
        steps = text.split(separator)
    named = [j.step for j in group.judgements if isinstance(j, Label) and j.response == position and j.step is not None]
    if max(named, default=0) >= len(steps):
        raise DataError(
            f"got a label for step {max(named)} of response {position}, which has {len(steps)} steps — expected steps "
            f"counted from 0 and separated by {separator!r} (extra.step_separator)"
        )
    return (*(step + separator for step in steps[:-1]), steps[-1])


def _text(content: Text | None) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if len(content) != 1:
        roles = ", ".join(turn.role for turn in content)
        raise DataError(f"got labels for steps of a response of several turns ({roles}) — expected one assistant turn")
    return content[0].content


def _cut(segments: Sequence[Segment], steps: Sequence[str]) -> tuple[Segment, ...]:
    whole = "".join(steps)
    if len(segments) != 1 or segments[0].text.count(whole) != 1:
        raise DataError(
            "the chat template changes the text of a response whose steps were judged, so it is not known where they "
            "end — set template.chat=transcript, or another that leaves the text as it is"
        )
    front, _, back = segments[0].text.partition(whole)
    texts = list(steps)
    texts[0] = front + texts[0]
    texts[-1] += back
    return tuple(replace(segments[0], text=text, ends_step=True) for text in texts)
