"""The documentation is true: its Python runs, its commands parse, its messages and tables are what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.cli import build_parser, main
from accord.cli.align import read_settings
from accord.config import build_config
from accord.lab.base_model import base_model_folder
from accord.lab.text_world import all_requests, render_request
from accord.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
PAIRS = [
    {"prompt": "two facts about bees, formally", "chosen": " indeed bees make honey. bees visit flowers.",
     "rejected": " lol cats hunt mice."},
    {"prompt": "two facts about cats, casually", "chosen": " yo cats hunt mice. cats see at night.",
     "rejected": " cats hunt mice."},
]  # fmt: skip


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the code blocks of one language, in order, without the indentation of a list item."""
    for found in FENCE.finditer(page.read_text("utf-8")):
        if found["language"] == language:
            yield textwrap.dedent(found["body"])


def name_of(page: Path) -> str:
    """Return how a page is named in a test's id."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of, and a cache of its own."""
    shutil.copytree(base_model_folder(), tmp_path / "my-model")
    many = PAIRS + [{**PAIRS[0], "prompt": render_request(request)} for request in all_requests()]
    (tmp_path / "my-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    (tmp_path / "pairs.jsonl").symlink_to("my-pairs.jsonl")
    (tmp_path / "my-prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS))
    problems = [{"prompt": f"add {n} and 1", "answer": str(n + 1)} for n in range(2, 22)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=name_of)
def test_python_blocks_run(page: Path, desk: Path):
    if page.name == "run_folder.md":
        main(["align", "--model", "my-model", "--data", "my-pairs.jsonl", "--out", "runs/first"])
    if page.name == "reference.md":
        pytest.skip("signatures, not programs")
    names: dict[str, object] = {"__name__": "docs"}
    for body in blocks(page, "python"):
        exec(compile(body, name_of(page), "exec"), names)


def commands(page: Path) -> list[list[str]]:
    """Return the `accord …` commands of a page's shell blocks, launchers and pipes taken off."""
    found = []
    for body in blocks(page, "bash"):
        for line in body.splitlines():
            words = shlex.split(line.replace("-m accord.cli", "accord"), comments=True)
            if "accord" in words and "pip" not in words:
                found.append(words[words.index("accord") + 1 :])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_parse_and_name_valid_settings(page: Path):
    for words in commands(page):
        parsed = build_parser().parse_args(words)
        if words[0] in ("align", "sft"):
            assert build_config(read_settings(parsed)).model.path == "my-model"


def test_commands_of_the_readme_run(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", iter(["two facts about bees, formally\n"]))
    for words in commands(ROOT / "README.md"):
        if words[0] == "verify":  # all the others' claims: tests/test_cli.py
            words = [*words, "--only-model"]
        if words[0] not in ("collect", "export", "agreement"):  # a server, and what is done with its store: tests/web
            assert main(words) == 0, words
    said = capsys.readouterr().out
    assert (desk / "runs/first/report.html").read_text().startswith("<!")
    assert (desk / "runs/first/model/config.json").exists()
    assert "claims hold" in said
    assert said.count("> two facts about bees, formally") == 1


def test_a_recipe_of_the_first_run_page_is_valid(desk: Path):
    (recipe,) = blocks(ROOT / "docs/how_to/first_run.md", "yaml")
    (desk / "recipe.yaml").write_text(recipe)
    config = build_config(read_settings(build_parser().parse_args(["align", "recipe.yaml", "train.lr=5e-7"])))
    assert (config.train.lr, config.objective.settings["beta"], config.out) == (5e-7, 0.1, "runs/first")


BAD_INPUT = [
    "train.batchsize=8",
    "objective=simpo objective.label_smoothing=0.1",
    "objective=dpoo",
    "objective.beta=-1",
    "train.epochs=many",
    "evaluate.patience=3",
    "model.precision=bfloat16",
    "objective=simpo reference=my-model evaluate.num_samples=0",
    "data=malformed.jsonl",
    "data=column.jsonl",
    "data=unknown.jsonl",
    "data=nosuch.jsonl",
    "data=demonstration.jsonl",
    "data=identical.jsonl data.on_identical=error",
    "data.max_tokens=12 data.on_too_long=error",
    "model=./nomodel",
    "model=my-pairs.jsonl",
    "model=half",
    "out=full",
]


@pytest.mark.parametrize("settings", BAD_INPUT)
def test_messages_of_the_bad_input_page_are_real(settings: str, desk: Path, capsys: pytest.CaptureFixture[str]):
    two = "".join(json.dumps(row) + "\n" for row in PAIRS)
    same = {"prompt": "two facts about bees, formally", "chosen": " bees make honey.", "rejected": " bees make honey."}
    for name, text in (
        ("malformed", two + '{"prompt": "x", "chosen": \n'),
        ("column", two + '{"prompt": "x", "choosen": "a", "rejected": "b"}\n'),
        ("unknown", '{"question": "x", "good": "a", "bad": "b"}\n'),
        ("demonstration", '{"prompt": "x", "completion": "a"}\n'),
        ("identical", two + json.dumps(same) + "\n"),
    ):
        (desk / f"{name}.jsonl").write_text(text)
    shutil.copytree("my-model", "half")
    weights = (desk / "half/model.safetensors").read_bytes()
    (desk / "half/model.safetensors").write_bytes(weights[: len(weights) // 2])
    (desk / "full").mkdir()
    (desk / "full/note.txt").write_text("mine")
    given = ["model=my-model", "data=my-pairs.jsonl", "out=run", *settings.split()]
    assert main(["align", *given]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1].replace(f"{desk}/", "")
    assert message in (ROOT / "docs/bad_input.md").read_text("utf-8")
    assert not (desk / "run").exists()


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.outdated() == [], "run `python -m docs.generate`"


def test_the_tree_in_the_readme_has_every_file():
    (tree,) = (body for body in blocks(ROOT / "README.md", "text") if body.startswith("accord/"))
    listed, folders = set(), []
    for line in tree.splitlines():
        name, _, comment = line.strip().partition(" ")
        assert comment.strip() or name == "accord/", f"{name} has no comment"
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if name.endswith(".py"):
            listed.add("/".join(folders))
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "accord").rglob("*.py")
        if path.name != "__init__.py" or path.parent.name == "objectives"
    }
    assert listed == there


def test_every_objective_has_a_page_and_every_page_an_objective():
    assert {path.stem for path in (ROOT / "docs/objectives").glob("*.md")} == set(OBJECTIVES)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"(?s)```.*?```|`[^`]*`", "", page.read_text("utf-8"))
        for target in re.findall(r"(?<!\\)\]\(([^)#:\s]+)\)", prose):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
