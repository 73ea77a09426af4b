"""Mathematical answers: what is read, what is equal, what hostile input does to the workers, and every real label."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from accord.feedback import verifiers
from accord.feedback.verifiers import mathematics

SLOW = {"timeout_seconds": 120.0}  # nothing here takes that long; the machine may be loaded


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"hence \boxed{4}.", "4"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{4}", "4"),
        (r"\boxed 7 and so on", "7"),
        (r"\boxed{3} but then \boxed{4", None),  # cut off: no answer
        (r"\boxed{}", None),
        ("Final Answer: The final answer is $4$. I hope it is correct.", "4"),
        ("The answer is 3.5. Done.", "3.5"),
        ("**Answer:** 4", "4"),
        ("the answer is 3\nthe answer is $4$", "4"),
        ("so\n#### 4", "4"),
        ("x = 4", "x = 4"),
        ("First this.\nThen that: $x = 4$.", None),
        ("<think>\\boxed{3}</think> \\boxed{4}", "4"),
        ("<think>\\boxed{4}", None),
        ("", None),
    ],
)
def test_the_final_answer_is_one(text: str, answer: str | None) -> None:
    assert verifiers.final_answer(text) == answer


@pytest.mark.parametrize(
    ("given", "right", "score"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\dfrac12", r"\frac{1}{2}", 1.0),
        ("1/2", r"\frac{1}{2}", 1.0),
        ("10{,}000", "10,000", 1.0),
        ("10000", "10{,}000", 1.0),
        ("(1,2)", "(1, 2)", 1.0),
        ("(2,1)", "(1, 2)", 0.0),
        (r"\{2,1\}", r"\{1, 2\}", 1.0),
        ("2x + x", "3x", 1.0),
        ("x = 3", "3", 1.0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        (r"\left(-\infty, 3\right]", r"(-\infty,3]", 1.0),
        (r"\text{Evelyn}", r"\text{Evelyn}", 1.0),
        (r"\text{Evelyn}", r"\text{Angela}", 0.0),
        ("4", "3", 0.0),
        ("3 or 4", "3", 0.0),
        ("3, 4", "3", 0.0),
        (r"3 \text{ or } 4", "3", 0.0),
        (r"\pm 3", "3", 0.0),
        ("3 4", "3", 0.0),
        ("?!", "3", 0.0),
    ],
)
def test_equality(given: str, right: str, score: float) -> None:
    found = verifiers.math(f"hence \\boxed{{{given}}}", right, **SLOW)
    assert found.score == score, found


def test_two_answers_win_only_where_that_is_asked_for() -> None:
    both = "The answer is 4. Check: $3$"
    assert verifiers.math(both, "3").score == 0.0
    assert verifiers.math(both, "3", extraction="loose").score == 1.0
    assert verifiers.math(both, "4").score == 1.0
    for text in (r"\boxed{3} \boxed{4}", r"\boxed{3} and \boxed{4}", r"\boxed{\boxed{3}, \boxed{4}}"):
        assert verifiers.math(text, "3", extraction="loose", **SLOW).score == 0.0


def test_what_cannot_be_known_is_not_scored() -> None:
    prose = r"No solution : $\oslash$"  # of a real file
    assert verifiers.math(r"\boxed{5}", prose, **SLOW).score is None
    assert verifiers.math(f"\\boxed{{{prose}}}", prose).score == 1.0
    assert verifiers.math("", prose).score == 0.0
    assert verifiers.math(r"\boxed{5}", "").score is None
    assert verifiers.math(r"\boxed{5}", "5" * 5000).score is None


def test_a_question_over_its_time_is_unknown_and_the_worker_is_replaced() -> None:
    assert verifiers.math(r"\boxed{2x + x}", "3x", **SLOW).score == 1.0
    before = worker_ids()
    found = verifiers.math(r"\boxed{9^{9^{9^{9}}}}", "3", timeout_seconds=0.5)
    assert found.score is None
    assert "0.5 s" in found.reason
    assert verifiers.math(r"\boxed{2x + x}", "3x", **SLOW).score == 1.0
    gone = before - worker_ids()
    assert len(gone) == 1
    assert not any(Path(f"/proc/{number}").exists() for number in gone)  # collected, no zombie


def test_a_worker_that_was_ended_from_outside_is_replaced_without_a_word() -> None:
    assert verifiers.math(r"\boxed{2x + x}", "3x", **SLOW).score == 1.0
    for number in worker_ids():
        os.kill(number, 9)
    assert verifiers.math(r"\boxed{2x + x}", "3x", **SLOW).score == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "{" * 200 + "4" + "}" * 200 + "}",
        "\\boxed{" + r"\frac{1}{" * 150 + "4" + "}" * 150 + "}",
        "\\boxed{" + "(" * 900 + "4" + ")" * 900 + "}",
        "\\boxed{" + "4" * 1_000_000 + "}",
        "\\boxed{" * 100_000,
        "{" * 1_000_000,
        "}" * 1_000_000,
        "\\boxed{}" * 100_000,
        "$" * 1_000_000,
        "#" * 1_000_000,
        "answer is " * 100_000,
        "1," * 500_000,
        r"\boxed{4}}",
        r"\boxed{{4}",
        r"\boxed{\}",
        r"\boxed{import os}",
        r"\boxed{10^{10^{10}}}",
        r"\boxed{1000000!}",
        r"\boxed{\int_0^1 x^{x^{x}} dx}",
        "\x00\ud800\\boxed{\x00}",
    ],
    ids=range(20),
)
def test_hostile_input_never_wins_and_never_stops_the_caller(text: str) -> None:
    assert verifiers.math(text, "3", timeout_seconds=1.5).score in (0.0, None)
    assert verifiers.math(text, "3", extraction="loose", timeout_seconds=1.5).score in (0.0, None)
    assert verifiers.gsm8k(text, "3").score == 0.0


def test_many_threads_share_the_workers() -> None:
    numbers = list(range(40))
    with ThreadPoolExecutor(max_workers=16) as threads:
        scores = list(threads.map(lambda n: verifiers.math(f"\\boxed{{{n}x + x}}", f"{n + 1}x", **SLOW).score, numbers))
    assert scores == [1.0] * len(numbers)
    assert len(worker_ids()) <= max(1, min(8, os.cpu_count() or 1))


def test_a_forked_child_has_workers_of_its_own_and_nothing_outlives_a_caller() -> None:
    code = textwrap.dedent(r"""
        import os
        from accord.feedback import verifiers
        from accord.feedback.verifiers import mathematics
        ask = lambda: verifiers.math(r"\boxed{2x + x}", "3x", timeout_seconds=120.0).score
        ids = lambda: [worker._process.pid for pool in mathematics._pools for worker in pool._idle]
        assert ask() == 1.0
        mine = ids()
        child = os.fork()
        if child == 0:
            ok = ask() == 1.0 and not set(ids()) & set(mine)
            verifiers.close_workers()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert ask() == 1.0 and ids() == mine
        print(*mine)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not any(Path(f"/proc/{number}").exists() for number in done.stdout.split())


def test_every_real_label_as_a_boxed_answer_is_right(shared_data: Path) -> None:
    for name, column, count in (("college_math_ccby", "answer", 1260), ("math_cot_100_bon8_rm", "gt", 100)):
        lines = (shared_data / "math_misc" / f"{name}.jsonl").read_text("utf-8").splitlines()
        labels = [json.loads(line)[column] for line in lines]
        assert len(labels) == count
        assert Counter(verifiers.math(f"\\boxed{{{label}}}", label, **SLOW).score for label in labels) == {1.0: count}
        assert {verifiers.math("", label).score for label in labels} == {0.0}


def test_800_published_verdicts(shared_data: Path) -> None:
    """One differs: their checker takes `10{,}000` and 10000 for different numbers."""
    lines = (shared_data / "math_misc" / "math_cot_100_bon8_rm.jsonl").read_text("utf-8").splitlines()
    judged = [
        (row["idx"], verifiers.math(text, row["gt"], **SLOW).score, score)
        for row in map(json.loads, lines)
        for text, score in zip(row["code"], row["score"], strict=True)
    ]
    assert len(judged) == 800
    assert [(index, ours) for index, ours, theirs in judged if ours != float(theirs)] == [(72, 1.0)]


def worker_ids() -> set[int]:
    """Return the process ids of the idle workers."""
    return {worker._process.pid for pool in mathematics._pools for worker in pool._idle}
