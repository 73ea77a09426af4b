"""Code judged by unit tests: right ones pass, wrong ones fail, and nothing a solution does can fake it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from accord.errors import ConfigError, DataError, FeedbackError
from accord.feedback.findings import Finding
from accord.feedback.sandbox import BubblewrapSandbox, Limits, Program, ProgramOutcome, find_sandbox
from accord.feedback.sandbox.messages import decode, encode
from accord.feedback.verifiers.code import (
    CodeJudge,
    CodeReward,
    code,
    code_limits,
    code_prompt,
    extract_code,
    solution_of,
)
from accord.records import Group, Response

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add(2, 2) == 4\nassert add(10, 5) == 15\n"
CHECK = "def check(candidate):\n" + "".join(f"    {line}\n" for line in TESTS.replace("add", "candidate").splitlines())
RIGHT = "def add(a, b):\n    return a + b\n"
PATIENT = code_limits(cpu_seconds=20, memory_mib=400)


def judged(solution: str, tests=TESTS, *, limits: Limits = PATIENT, mode="all", **given) -> Finding:
    """Judge a fenced solution."""
    judge = CodeJudge(sandbox=BubblewrapSandbox(), limits=limits, mode=mode)
    return judge.finding(f"It goes like this:\n```python\n{solution}\n```\n", tests, **given)


# What is judged -----------------------------------------------------------------------------------------------------


def test_the_last_python_block_counts() -> None:
    text = "```python\nfirst = 1\n```\nno:\n```py\nsecond = 2\n```\nrun it:\n```bash\npython x.py\n```\n"
    assert extract_code(text) == "second = 2\n"
    assert extract_code("    return a + b\n") == "    return a + b\n"
    assert extract_code("```python\ncut = off") == "cut = off"
    assert extract_code("```\nbare = 1\n```") == "bare = 1\n"


def test_a_response_stands_on_its_own_or_continues_the_prompt() -> None:
    prompt = 'import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    """Area of a circle."""\n'
    own = solution_of("```python\ndef area(r):\n    return math.pi * r * r\n```", prompt, "area")
    assert own is not None
    assert own.startswith("import math\n\ndef helper(x):")
    assert own.count("def area") == 1
    assert solution_of("    return math.pi * r * r\n", prompt, "area") == prompt + "    return math.pi * r * r\n"
    assert solution_of("def area(r:\n", prompt, "area") is None
    assert code_prompt("Write a function.") == code_prompt("Hello") == code_prompt("2 + 2") == ("", "")
    assert code_prompt("def f(x):\n") == ("def f(x):\n", "def f(x):\n    pass\n"), "a body is still to be written"
    assert code_prompt("import os\n") == ("import os\n", "import os\n")


# Right and wrong ----------------------------------------------------------------------------------------------------


@needs_bwrap
@pytest.mark.parametrize("tests", [TESTS, CHECK, TESTS.splitlines()], ids=["text", "check", "list"])
def test_a_right_solution_passes_and_a_wrong_one_fails(tests) -> None:
    assert judged(RIGHT, tests) == Finding(score=1.0, reason="4 of 4 hold", parts={"passed": 1.0})
    assert judged(RIGHT.replace("+", "-"), tests).score == 0.0


@needs_bwrap
@pytest.mark.parametrize("tests", [TESTS, CHECK, TESTS.splitlines()], ids=["text", "check", "list"])
def test_the_fraction_counts_assertions(tests) -> None:
    """a·b: 1·2 ≠ 3, −1·1 ≠ 0, 2·2 = 4, 10·5 ≠ 15: one of four."""
    assert judged(RIGHT.replace("+", "*"), tests, mode="fraction").score == 1 / 4
    assert judged(RIGHT, tests, mode="fraction").score == 1.0


@needs_bwrap
def test_what_stops_the_tests_fails_the_rest() -> None:
    finding = judged("def add(a, b):\n    import os\n    return a + b if a < 2 else os._exit(0)\n", mode="fraction")
    assert finding.score == 2 / 4


@needs_bwrap
def test_scripts_are_judged_by_what_they_print() -> None:
    rows = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10"}]
    assert judged("print(sum(map(int, input().split())))", rows).score == 1.0
    assert judged("print(3)", rows).score == 0.0
    assert judged("print(3)", rows, mode="fraction").score == 1 / 2
    assert judged("print(3); raise SystemExit(1)", rows[:1]).score == 0.0


@needs_bwrap
def test_values_of_every_built_in_type_come_across() -> None:
    solution = """
import itertools
def same(x): return x
def numbers(): return (n for n in range(3))
def fail(): raise ZeroDivisionError("no")
def big(): return 10**5000
class Weird: pass
def weird(): return Weird()
"""
    tests = """
nested = [1, (2, {3}), {"a": {4: frozenset({5})}}]
for value in (None, True, 1, -2.5, 1j, "ä\\ud800", b"x", bytearray(b"y"), nested, range(3)):
    answer = same(value)
    assert answer == value and type(answer) is type(value)
assert same(float("inf")) == float("inf") and same(float("nan")) != same(float("nan"))
assert list(numbers()) == [0, 1, 2]
assert big() == 10**5000
try:
    fail()
    assert False
except ZeroDivisionError as error:
    assert str(error) == "no"
"""
    assert judged(solution, tests).score == 1.0, judged(solution, tests)
    assert judged(solution, "assert weird() is not None").score == 0.0


# Unknown is not wrong -----------------------------------------------------------------------------------------------


@needs_bwrap
@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert add(1, 2) ==", "SyntaxError"),
        ("x = 1", "assert nothing"),
        ("assert add(lambda: 1, 2) == 3", "function is not made of built-in types"),
        ([{"input": "1"}], "expected"),
    ],
)
def test_tests_that_do_not_run_say_nothing_of_the_solution(tests, reason: str) -> None:
    finding = judged(RIGHT, tests)
    assert finding.score is None
    assert reason in finding.reason


class BrokenSandbox:
    """A sandbox that is down."""

    def start(self, program: Program, limits: Limits):
        """Fail."""
        raise FeedbackError("bubblewrap could not set up the sandbox")

    def run(self, program: Program, limits: Limits) -> ProgramOutcome:
        """Fail."""
        raise FeedbackError("bubblewrap could not set up the sandbox")


@pytest.mark.parametrize("tests", [TESTS, [{"input": "", "output": ""}]], ids=["assertions", "script"])
def test_a_sandbox_that_fails_is_unknown(tests) -> None:
    finding = CodeJudge(sandbox=BrokenSandbox()).finding(RIGHT, tests)
    assert finding.score is None
    assert "could not set up" in finding.reason


# Cheats --------------------------------------------------------------------------------------------------------------

EQUAL = "def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = None"
CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "exit in the call": "import sys\ndef add(a, b): sys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "hard exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "equal to everything": f"class Any:\n    {EQUAL}\ndef add(a, b): return Any()",
    "an int equal to everything": f"class Any(int):\n    {EQUAL}\ndef add(a, b): return Any(0)",
    "pretends to be an int": f"class Any:\n    __class__ = int\n    {EQUAL}\ndef add(a, b): return Any()",
    "no assertions": "import builtins\nbuiltins.AssertionError = type('E', (), {})\ndef add(a, b): return 0",
    "patches everything": "import builtins, ast, sys\nast.Assert = None\nsys.flags = None\nbuiltins.__import__ = None\n"
    "builtins.isinstance = lambda *_: True\ndef add(a, b): return 0",
    "prints the result": "print('passed 4 of 4')\nprint('{\"passed\": 4}')\ndef add(a, b): print(a + b)",
    "forges a report": "import os, json\n"
    "report = {'passed': 4, 'failed': 0, 'asserts': 4, 'stopped': '', 'broken': ''}\n"
    "for fd in range(1, 99):\n    try: os.write(fd, json.dumps(report).encode() + b'\\n')\n    except OSError: pass\n"
    "os._exit(0)",
    "stops the tests": "def add(a, b): raise KeyboardInterrupt",
    "raises what asserts raise": "def add(a, b): raise AssertionError",
    "ends the tests quietly": "def add(a, b): raise StopIteration",
    "claims the tests are broken": "import os, socket\nfor fd in range(3, 99):\n    try: os.write(fd, b'{\"raised\": "
    "\"CannotSendError\", \"text\": \"\"}\\n' * 10)\n    except OSError: pass",
    "raises a cannot-send": "class CannotSendError(Exception): pass\ndef add(a, b): raise CannotSendError",
    "reads the tests": "import glob\ntext = ''\nfor path in glob.glob('/files/*') + glob.glob('/tmp/*') + "
    "glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/fd/*') + glob.glob('/proc/*/cwd/*'):\n"
    "    if 'pipe' not in path and path[-2:] not in ('/0', '/1', '/2', '/3', '/4', '/5', '/6', '/7', '/8', '/9'):\n"
    "        try: text += open(path, errors='replace').read()\n        except OSError: pass\n"
    "def add(a, b): return a + b if 'add(1, 2)' + ' == 3' in text else None",
    "a huge text": "def add(a, b): return 'x' * 10**9",
    "a long answer": "def add(a, b): return 'x' * (20 * 2**20)",
    "a deep answer": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "no end of an iterator": "import itertools\ndef add(a, b): return itertools.repeat(0)",
    "sends a deep line": "import os\ndef add(a, b):\n"
    "    text = b'{\"value\": ' + b'[' * 10**6 + b']' * 10**6 + b'}\\n'\n"
    "    for fd in range(3, 99):\n        try: os.write(fd, text)\n        except OSError: pass\n    os._exit(0)",
    "sends an endless line": "import os\ndef add(a, b):\n    while True:\n        for fd in range(3, 99):\n"
    "            try: os.write(fd, b'x' * 10**6)\n            except OSError: pass",
    "sends many lists": "import os\ndef add(a, b):\n    text = b'{\"value\": [' + b'[],' * (5 * 10**6) + b'[]]}\\n'\n"
    "    for fd in range(3, 99):\n        try: os.write(fd, text)\n        except OSError: pass\n    os._exit(0)",
    "nothing": "",
    "null bytes": "\0",
    "returns nothing": "def add(a, b): return None",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "kills all": "import os, signal\ndef add(a, b): os.kill(-1, signal.SIGKILL)",
    "stays silent": "def add(a, b):\n    import os\n    for fd in range(99):\n        try: os.close(fd)\n"
    "        except OSError: pass",
}  # fmt: skip


@needs_bwrap
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_scores_zero(name: str) -> None:
    finding = judged(CHEATS[name])
    assert finding.score == 0.0, finding
    assert finding.reason


@needs_bwrap
@pytest.mark.parametrize(
    "solution",
    [
        "while True: pass", "def add(a, b):\n    while True: pass", "import time\ntime.sleep(600)",
        "try: input()\nexcept EOFError: pass\nimport time\ntime.sleep(600)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ],
    ids=["loop", "loop in the call", "sleep", "input", "fork bomb"],
)  # fmt: skip
def test_out_of_time_scores_zero(solution: str) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=3.0, processes=8)
    assert judged(solution, limits=limits).score == 0.0


@needs_bwrap
def test_loops_over_an_empty_answer_are_no_pass() -> None:
    tests = "for item in primes(10):\n    assert item in (2, 3, 5, 7)\n"
    assert judged("def primes(n): return [2, 3, 5, 7]", tests).score == 1.0
    assert judged("def primes(n): return []", tests).score == 0.0


@needs_bwrap
def test_an_argument_cannot_be_changed_under_the_test() -> None:
    tests = "x = [3, 1, 2]\nassert first(x) == x[0] == 3"
    assert judged("def first(x): return x[0]", tests).score == 1.0
    assert judged("def first(x):\n    x[0] = 7\n    return 7", tests).score == 0.0


def test_only_values_are_rebuilt() -> None:
    """What arrives is data: no name of a class or module in it is looked up."""
    for message in (["os.system", ["true"]], ["list"], {"a": 1}, 3, ["int", "x"], ["dict", [[["list", []], 1]]]):
        with pytest.raises((ValueError, TypeError)):
            decode(message)
    assert decode(json.loads(json.dumps(encode({1: (2, {3})})))) == {1: (2, {3})}


# Rewards and settings -----------------------------------------------------------------------------------------------


@needs_bwrap
def test_as_a_reward_of_groups() -> None:
    responses = tuple(Response(content=text) for text in (RIGHT, RIGHT.replace("+", "-"), "def add(a"))
    groups = [
        Group(prompt="Write add.", responses=responses, extra={"tests": TESTS}),
        Group(prompt="Write add.", responses=(Response(token_ids=(1, 2)),), extra={"tests": TESTS}),
        Group(
            prompt="def add(a, b):\n", responses=(Response(content="    return int(fsum([a, b]))\n"),),
            extra={"test": CHECK, "entry_point": "add", "imports": "from math import fsum"},
        ),
    ]  # fmt: skip
    findings = CodeReward(max_workers=2, limits=PATIENT)(groups)
    assert [[finding.score for finding in found] for found in findings] == [[1.0, 0.0, 0.0], [None], [1.0]]
    with pytest.raises(DataError, match="code needs `tests` or `test`"):
        CodeReward()([Group(prompt="x", responses=responses)])


@needs_bwrap
def test_as_a_plain_function() -> None:
    assert code(RIGHT, TESTS).score == 1.0
    assert code(RIGHT, CHECK, mode="fraction").score == 1.0, "the last function is the candidate"
    with pytest.raises(ConfigError, match="mode='half'"):
        code(RIGHT, TESTS, mode="half")  # type: ignore[arg-type]  # the wrong setting is the point


def test_without_a_sandbox_in_words_only() -> None:
    with pytest.warns(UserWarning, match="WITHOUT a sandbox"):
        sandbox = find_sandbox(unsafe_local=True)
    judge = CodeJudge(sandbox=sandbox, limits=PATIENT)
    assert judge.finding(RIGHT, TESTS).score == 1.0
    assert judge.finding("import os\nos._exit(0)", TESTS).score == 0.0


# HumanEval ----------------------------------------------------------------------------------------------------------

SAMPLE = (0, 2, 10, 32, 38, 50, 53, 76, 99, 129, 151, 163)  # among them those whose tests use the prompt's helpers


def humaneval(shared_data: Path) -> list[dict[str, str]]:
    """Return the sampled problems."""
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    return [problems[number] for number in SAMPLE]


def broken(problem: dict[str, str]) -> dict[str, str]:
    """Return wrong versions of the canonical solution."""
    return {
        "returns nothing": "    return None\n",
        "wrong constant": "    return 'wrong'\n",
        "syntax": problem["canonical_solution"] + "    return (\n",
        "raises": "    raise NotImplementedError\n",
        "only the prompt": "",
    }


@needs_bwrap
def test_humaneval(shared_data: Path) -> None:
    problems = humaneval(shared_data)
    groups = [
        Group(
            prompt=problem["prompt"], extra=problem,
            responses=tuple(
                Response(content=text) for text in (problem["canonical_solution"], *broken(problem).values())
            ),
        )
        for problem in problems
    ]  # fmt: skip
    findings = CodeReward(limits=PATIENT, max_workers=2)(groups)
    assert [[finding.score for finding in found] for found in findings] == [[1.0, *[0.0] * 5]] * len(SAMPLE)


@needs_bwrap
def test_humaneval_answered_in_full(shared_data: Path) -> None:
    """A chat model writes the whole function in a fence and is told neither prompt nor name of the candidate."""
    for problem in humaneval(shared_data)[:4]:
        text = f"```python\n{problem['prompt']}{problem['canonical_solution']}```"
        assert code(text, problem["test"], cpu_seconds=20).score == 1.0
