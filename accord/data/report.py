"""The data report: what a person should see of a data set before a model is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from accord.data.policies import EncodedData, is_blank, is_prompt_only
from accord.data.readers.files import BadRow
from accord.data.tokens import TokenGroup, TokenResponse
from accord.records import Comparison, Group, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
TRAINED, END = ("«", "»")  # marks around the trained span of the example


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """What encoding did: lengths in tokens, shares between 0 and 1, and every row that was dropped."""

    prompt_tokens: dict[str, int]
    response_tokens: dict[str, int]
    total_tokens: int  # in the tree layout: every prompt once
    trained_share: float  # trained response tokens of all tokens in the tree layout
    truncated_share: float  # groups with a cut prompt or response, of those kept
    eos_share: float  # responses that end in a trained end of sequence
    counts: dict[str, int]
    dropped: dict[str, int]  # reason → groups
    template: str
    notes: list[str]
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """Facts about a data set. Counts are of groups (rows) unless the name says otherwise."""

    path: str = ""
    format: str = ""
    rows: int  # groups and bad rows
    groups: int
    responses: int
    group_sizes: dict[int, int]  # responses per group → groups
    judgements: dict[str, int]  # kind → judgements
    identical_pairs: int  # a comparison between two equal responses
    empty_responses: int  # rows with an empty response, or an empty last turn
    prompts_differ: int  # pairs whose prompts are not the same
    prompts_equal: int
    other_speaker: int  # a response that runs on into another speaker's turn
    duplicates: int  # the same prompt and responses as an earlier row
    better_is_longer_share: float | None  # of compared pairs of unequal length, in characters; None without pairs
    prompt_characters: dict[str, int]
    response_characters: dict[str, int]
    bad_rows: int
    first_bad_rows: list[str] = field(default_factory=list)
    tokens: TokenReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the report as lines for a terminal or a log."""
        lines = [f"Data report{': ' + self.path if self.path else ''}"]
        lines += [f"  {name:<22} {value}" for name, value in self._facts()]
        if self.tokens is not None:
            lines += [f"  {name:<22} {value}" for name, value in _token_facts(self.tokens)]
            lines += [f"  note: {note}" for note in self.tokens.notes]
            lines += [f"Example (the trained span stands between {TRAINED} and {END}):"]
            lines += ["  " + line for line in self.tokens.example.splitlines()]
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        sizes = ", ".join(f"{count} × K={size}" for size, count in sorted(self.group_sizes.items()))
        judged = ", ".join(f"{count} {kind}" for kind, count in sorted(self.judgements.items())) or "none"
        facts = [
            ("rows", f"{self.rows} ({self.groups} groups, {self.bad_rows} bad rows)"),
            ("format", self.format),
            ("groups", f"{sizes}; {self.responses} responses"),
            ("judgements", judged),
            ("prompt characters", _spread(self.prompt_characters)),
            ("response characters", _spread(self.response_characters)),
            ("identical pairs", self._count(self.identical_pairs)),
            ("empty responses", self._count(self.empty_responses)),
            ("prompts that differ", self._count(self.prompts_differ)),
            ("runs into other turn", self._count(self.other_speaker)),
            ("duplicate rows", self._count(self.duplicates)),
        ]
        if self.better_is_longer_share is not None:
            facts.append(("better is longer", f"{self.better_is_longer_share:.1%} of pairs"))
        facts += [("bad row", text) for text in self.first_bad_rows]
        return [(name, value) for name, value in facts if value]

    def _count(self, count: int) -> str:
        return f"{count} ({count / max(self.groups, 1):.2%})" if count else "0"


def data_report(
    groups: Sequence[Group],
    encoded: EncodedData | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    path: str = "",
    format: str = "",
    bad_rows: Sequence[BadRow] = (),
) -> DataReport:
    """Report on groups as read and, given `encoded` and its tokenizer, on what the policy will see of them."""
    pairs = [pair for group in groups for pair in _compared(group)]
    unequal = [(len(better), len(worse)) for better, worse in pairs if len(better) != len(worse)]
    differ = sum(bool(group.extra.get("prompts_differ")) for group in groups)
    responses = [response for group in groups for response in group.responses]
    seen = Counter((_key(group.prompt), _contents(group)) for group in groups)
    kinds = Counter(type(judgement).__name__.lower() for group in groups for judgement in group.judgements)
    return DataReport(
        path=path,
        format=format,
        rows=len(groups) + len(bad_rows),
        groups=len(groups),
        responses=len(responses),
        group_sizes=dict(Counter(len(group.responses) for group in groups)),
        judgements=dict(kinds),
        identical_pairs=sum(_has_identical_pair(group) for group in groups),
        empty_responses=sum(any(map(is_blank, group.responses)) for group in groups if not is_prompt_only(group)),
        prompts_differ=differ,
        prompts_equal=len(groups) - differ,
        other_speaker=sum(bool(group.extra.get("has_other_speaker")) for group in groups),
        duplicates=sum(count - 1 for count in seen.values()),
        better_is_longer_share=sum(b > w for b, w in unequal) / len(unequal) if unequal else None,
        prompt_characters=quantiles([len(plain(group.prompt)) for group in groups]),
        response_characters=quantiles([len(plain(r.content)) for r in responses if r.content is not None]),
        bad_rows=len(bad_rows),
        first_bad_rows=[str(row) for row in bad_rows[:5]],
        tokens=None if encoded is None else _token_report(encoded, tokenizer),
    )


def plain(text: Text | None) -> str:
    """Return a text's characters without any template: the turns' contents, one after another."""
    if isinstance(text, tuple):
        return "\n".join(turn.content for turn in text)
    return text or ""


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """Return the named quantiles (lower nearest rank, so each is a value that occurs); empty for no values."""
    ordered = sorted(values)
    return {name: ordered[int(share * (len(ordered) - 1))] for name, share in QUANTILES.items()} if ordered else {}


def _contents(group: Group) -> tuple[Any, ...]:
    return tuple(r.token_ids if r.token_ids is not None else _key(r.content) for r in group.responses)


def _key(text: Text | None) -> Any:
    """A text as something hashable; what a turn carries beside its words (calls of tools) counts too."""
    return tuple((t.role, t.content, repr(t.extra)) for t in text) if isinstance(text, tuple) else text


def _compared(group: Group) -> list[tuple[str, str]]:
    texts = [plain(response.content) for response in group.responses]
    return [(texts[j.better], texts[j.worse]) for j in group.judgements if isinstance(j, Comparison) and not j.is_tie]


def _has_identical_pair(group: Group) -> bool:
    contents = _contents(group)
    return any(contents[j.better] == contents[j.worse] for j in group.judgements if isinstance(j, Comparison))


def _token_report(encoded: EncodedData, tokenizer: PreTrainedTokenizerBase | None) -> TokenReport:
    groups = encoded.groups
    responses = [response for group in groups for response in group.responses]
    total = sum(group.num_tokens for group in groups)
    reasons = Counter(item.reason for item in encoded.dropped)
    return TokenReport(
        prompt_tokens=quantiles([len(group.prompt_ids) for group in groups]),
        response_tokens=quantiles([len(response.ids) for response in responses]),
        total_tokens=total,
        trained_share=sum(response.num_trained for response in responses) / max(total, 1),
        truncated_share=encoded.counts["groups_truncated"] / max(len(groups), 1),
        eos_share=sum(response.has_eos for response in responses) / max(len(responses), 1),
        counts=encoded.counts,
        dropped=dict(reasons.most_common()),
        template=encoded.template,
        notes=encoded.notes,
        example=mark_example(groups[0], tokenizer) if groups and tokenizer is not None else "",
    )


def mark_example(group: TokenGroup, tokenizer: PreTrainedTokenizerBase, *, width: int = 600) -> str:
    """Decode a group with its trained spans between « and »; long texts lose their middle, never a mark."""
    prompt = _decode(tokenizer, group.prompt_ids)
    blocks = [f"[prompt, {len(group.prompt_ids)} tokens] {_clip(prompt, width)}"]
    for number, response in enumerate(group.responses):
        text = "".join(
            (f"{TRAINED}{_clip(piece, width)}{END}" if trained else _clip(piece, width))
            for trained, piece in _spans(response, tokenizer)
        )
        blocks.append(f"[response {number}, {response.num_trained} trained of {len(response.ids)} tokens] {text}")
    return "\n".join(blocks)


def _spans(response: TokenResponse, tokenizer: PreTrainedTokenizerBase) -> list[tuple[bool, str]]:
    flags = response.is_trained or (True,) * len(response.ids)
    spans: list[tuple[bool, list[int]]] = []
    for flag, token in zip(flags, response.ids, strict=True):
        if not spans or spans[-1][0] != flag:
            spans.append((flag, []))
        spans[-1][1].append(token)
    return [(flag, _decode(tokenizer, ids)) for flag, ids in spans]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def _clip(text: str, width: int) -> str:
    half = width // 2
    return text if len(text) <= width else f"{text[:half]} […] {text[-half:]}"


def _spread(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _token_facts(tokens: TokenReport) -> list[tuple[str, str]]:
    facts = [
        ("prompt tokens", _spread(tokens.prompt_tokens)),
        ("response tokens", _spread(tokens.response_tokens)),
        ("tokens in all", f"{tokens.total_tokens}, trained {tokens.trained_share:.1%}"),
        ("truncated", f"{tokens.truncated_share:.2%} of groups"),
        ("end of sequence", f"{tokens.eos_share:.2%} of responses"),
        ("template", tokens.template or "none (plain text)"),
    ]
    return facts + [("dropped", f"{count}: {reason}") for reason, count in tokens.dropped.items()]
