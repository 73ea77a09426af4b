"""The table of verifiers, and a row of it as a reward of groups."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.data import load_groups, write_groups
from accord.errors import ConfigError, DataError, FeedbackError
from accord.feedback.findings import Finding
from accord.feedback.verifiers import VERIFIERS, spec, verifier_reward
from accord.records import Group, Message, Response

MINE = sorted(set(VERIFIERS) - {"code"})  # code runs in a sandbox: test_code.py
NEEDED: dict[str, dict[str, Any]] = {"regex": {"pattern": "4"}, "json_schema": {"expected_schema": {}}}
LABELS: dict[str, dict[str, Any]] = {
    "gsm8k": {"answer": "4"},
    "math": {"answer": "4"},
    "string_match": {"answer": "4"},
    "multiple_choice": {"answer": "A"},
    "ifeval": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
}


TITLE = {
    "instruction_id_list": ["detectable_format:title", "detectable_format:json_format", "startend:quotation"],
    "kwargs": [{}, {}, {}],
}


def group(*texts: str, **extra: Any) -> Group:
    """Return a group with these responses and columns."""
    return Group(prompt="2 + 2?", responses=tuple(Response(content=text) for text in texts), origin="f:3", extra=extra)


@pytest.mark.parametrize("name", MINE)
def test_a_row_says_what_it_is(name: str) -> None:
    row = VERIFIERS[name]
    assert row.summary.endswith(".")
    assert row.fn.__name__ == name
    parameters = inspect.signature(row.fn).parameters
    positional = [key for key, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["response", *row.columns]
    assert set(row.settings()) - set(row.defaults()) == set(NEEDED.get(name, {}))


@pytest.mark.parametrize("name", MINE)
def test_a_row_as_a_reward(name: str) -> None:
    reward = verifier_reward(name, **NEEDED.get(name, {}))
    findings = reward([group("4", "", **LABELS.get(name, {})), group("a\na", **LABELS.get(name, {}))])
    assert [len(found) for found in findings] == [2, 1]
    assert all(isinstance(finding, Finding) and finding.reason for found in findings for finding in found)
    assert reward.name == name
    if name in LABELS and name != "multiple_choice":
        assert [finding.score for finding in findings[0]] == [1.0, 0.0]
    if name not in ("length", "repetition"):  # an empty response has a length, and repeats nothing
        assert findings[0][1].score == 0.0


@pytest.mark.parametrize("name", MINE)
def test_a_response_without_text_is_unknown(name: str) -> None:
    reward = verifier_reward(name, **NEEDED.get(name, {}))
    silent = Group(
        prompt="2 + 2?",
        responses=(Response(token_ids=(4,)), Response(content=(Message(role="user", content="4"),))),
        extra=LABELS.get(name, {}),
    )
    assert [finding.score for finding in reward([silent])[0]] == [None, None]


def test_a_missing_column_is_named_before_anything_is_scored() -> None:
    reward = verifier_reward("gsm8k")
    with pytest.raises(DataError, match=r"f:3: got the columns target .*'answer'.*reward\.gsm8k\.answer_column"):
        reward([group("4", answer="4"), group("4", target="4", answer=None)])
    with pytest.raises(DataError, match=r"f:3: got the columns none"):
        reward([group("4")])
    with pytest.raises(DataError, match=r"f:3: got the instruction 'x'"):
        verifier_reward("ifeval")([group("4", instruction_id_list=["x"], kwargs=[{}])])


def test_another_column() -> None:
    reward = verifier_reward("gsm8k", answer_column="target")
    assert [finding.score for finding in reward([group("4", "5", target=4)])[0]] == [1.0, 0.0]


def test_wrong_names_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        verifier_reward("gsmk8")
    with pytest.raises(ConfigError, match=r"reward\.math: got timeout — expected"):
        verifier_reward("math", timeout=3)
    with pytest.raises(ConfigError, match=r"reward\.math: got timeout_seconds=-1"):
        verifier_reward("math", timeout_seconds=-1)
    with pytest.raises(ConfigError, match="pattern"):
        verifier_reward("regex")


def test_a_missing_package_is_named_with_the_extra() -> None:
    with pytest.raises(FeedbackError, match=r"a_package_nobody_has.*accord\[verifiers\]"):
        spec.require("a_package_nobody_has", "this")


def test_columns_of_a_file_reach_the_verifier(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "2 + 2?", "completion": text, "answer": "#### 4"} for text in ("it is 4", "it is 5")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = verifier_reward("gsm8k")
    groups = load_groups(path).groups
    assert [[finding.score for finding in found] for found in reward(groups)] == [[1.0], [0.0]]
    write_groups(tmp_path / "again.parquet", groups)
    again = load_groups(tmp_path / "again.parquet").groups
    assert reward(again) == reward(groups)


def test_many_responses_keep_their_order() -> None:
    numbers = range(30)
    groups = [
        group(*(f"\\boxed{{{n}x + {k}x}}" for k in range(3)), answer=f"{n + 1}x") for n in numbers
    ]  # fmt: skip
    found = verifier_reward("math", timeout_seconds=120)(groups)
    assert [[finding.score for finding in of_group] for of_group in found] == [[0.0, 1.0, 0.0]] * len(numbers)


def test_verifiers_load_no_torch() -> None:
    code = (
        "import sys, accord.feedback.verifiers as v\n"
        "v.gsm8k('4', '4'); v.math('4x', '4x'); v.verifier_reward('length')\n"
        "print(sorted({'torch', 'transformers', 'sympy', 'langdetect', 'jsonschema'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("piece", ["<<a", "<answer>", "\\(", "$a", "``` ", ". (", "1,", "SECTION ", "****", "\\boxed{"])
def test_long_hostile_responses_come_back_and_never_win(piece: str) -> None:
    """Each of these took a pattern that reads the rest of the text at every place, minutes for this length."""
    text = piece * (300_000 // len(piece))
    for name in sorted(LABELS):
        found = verifier_reward(name)([group(text, **(LABELS[name] | TITLE if name == "ifeval" else LABELS[name]))])
        assert found[0][0].score == 0.0
    for name in ("json_schema", "think_format"):
        assert verifier_reward(name, **NEEDED.get(name, {}))([group(text)])[0][0].score == 0.0
