"""The data report finds what is wrong with a file, down to the numbers known of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from accord.data import data_report, encode_groups, load_groups
from accord.data.report import quantiles

HH = [  # file, equal prompts, identical pairs, rows with an empty last turn
    ("harmless-base", 2307, 0, 4),
    ("helpful-base", 2345, 2, 4),
    ("helpful-online", 1137, 2, 3),
    ("helpful-rejection-sampled", 2746, 32, 0),
]


@pytest.mark.parametrize(("name", "equal", "identical", "empty"), HH)
def test_known_defects_of_the_hh_test_splits(
    shared_data: Path, name: str, equal: int, identical: int, empty: int
) -> None:
    loaded = load_groups(shared_data / "hh_rlhf" / f"{name}.test.jsonl.gz")
    report = data_report(loaded.groups, path=name, format=loaded.format)
    assert report.format == "hh"
    assert (report.prompts_equal, report.identical_pairs, report.empty_responses) == (equal, identical, empty)
    assert report.prompts_differ == report.rows - equal


def test_real_rows_through_the_gpt2_vocabulary(shared_data: Path, gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_groups(shared_data / "hh_rlhf" / "helpful-base.test.jsonl.gz", limit=300)
    data = encode_groups(loaded.groups, gpt2_tokenizer, max_tokens=768, on_too_long="drop")
    for group in data.groups:
        assert group.source is not None
        prompt, turn = gpt2_tokenizer.decode(list(group.prompt_ids)), group.source.responses[0].content[0].content
        assert prompt.startswith("\n\nHuman:")
        assert prompt.endswith("\n\nAssistant:")
        assert gpt2_tokenizer.decode(list(group.responses[0].ids)) == f" {turn}<|endoftext|>"
    report = data_report(loaded.groups, data, gpt2_tokenizer)
    assert report.tokens is not None
    assert report.tokens.eos_share == 1.0
    assert report.groups == len(data.groups) + sum(report.tokens.dropped.values()) == 300
    assert f"[response 1, {data.groups[0].responses[1].num_trained} trained" in report.tokens.example


ROWS = [
    {"prompt": "a:", "chosen": " bb", "rejected": " c"},
    {"prompt": "a:", "chosen": " bb", "rejected": " c"},  # a duplicate
    {"prompt": "b:", "chosen": " b", "rejected": " b"},  # identical
    {"prompt": "c:", "chosen": "", "rejected": " cc"},  # empty
    {"prompt": "d:", "chosen": 7},  # bad
]


def test_every_defect_is_counted(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    loaded = load_groups(file, skip_bad_rows=True)
    data = encode_groups(loaded.groups, plain_tokenizer)
    report = data_report(
        loaded.groups, data, plain_tokenizer, path=str(file), format=loaded.format, bad_rows=loaded.bad_rows
    )
    assert (report.rows, report.groups, report.bad_rows, report.duplicates) == (5, 4, 1, 1)
    assert (report.identical_pairs, report.empty_responses) == (1, 1)
    assert report.better_is_longer_share == 2 / 3  # of three pairs of unequal length
    assert report.group_sizes == {2: 4}
    assert report.judgements == {"comparison": 4}
    tokens = report.tokens
    assert tokens is not None
    assert tokens.dropped == {"identical responses": 1, "empty response": 1}
    # " bb" and " c" with EOS: "Ġb" "b" EOS + "Ġ" "c" EOS = 6 trained of 8 in each of the two groups kept
    assert (tokens.total_tokens, tokens.trained_share) == (16, 0.75)
    assert tokens.example.splitlines() == [
        "[prompt, 2 tokens] a:",
        "[response 0, 3 trained of 3 tokens] « bb<eos>»",
        "[response 1, 3 trained of 3 tokens] « c<eos>»",
    ]
    assert json.loads(json.dumps(report.to_dict()))["tokens"]["counts"]["identical"] == 1
    text = report.to_text()
    for line in ("5 (4 groups, 1 bad rows)", "identical pairs        1 (25.00%)", f"{file}:5: no value for rejected"):
        assert line in text


def test_only_trained_turns_stand_between_the_marks(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row))
    loaded = load_groups(file)
    report = data_report(loaded.groups, encode_groups(loaded.groups, chat_tokenizer), chat_tokenizer)
    assert report.tokens is not None
    assert "«a<|im_end|>»\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»" in report.tokens.example


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(range(101)) == {"min": 0, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
    assert quantiles([]) == {}
