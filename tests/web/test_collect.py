"""`accord collect` and `accord export`: from prompts and a policy to a file of judged groups."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from page_visits import csrf_of, make_groups

from accord.agreement import measure_agreement
from accord.cli import main
from accord.data import load_groups, write_groups
from accord.feedback.people import EventKind, open_project
from accord.lab.annotators import GOLD, NOISY
from accord.lab.base_model import base_model_folder
from accord.lab.http_annotators import work_through, work_together
from accord.lab.text_world import gold_reward, parse_request, render_request, split_requests
from accord.records import Comparison, Group, Response

PATIENCE = 240.0  # s: a model is loaded on a busy machine


@contextmanager
def collecting(*arguments: str, is_in_background: bool = False) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """Open a page and read its links; a shell starts what it puts in the background with Ctrl-C ignored."""
    command = [sys.executable, "-m", "accord.cli", "collect", *arguments, "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if is_in_background else None,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, said
    return said


def wait_until(is_there, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not is_there():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)


def sampling_processes(folder: Path) -> list[str]:
    """Return the processes whose command names the project's folder, but for the page itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if "sample" in words and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def manager_page(link: str, client: httpx2.Client) -> str:
    """Sign in as the manager and return the page."""
    path = "/i/" + link.rsplit("/", 1)[-1]
    client.post(path, data={"name": "Max", "csrf": csrf_of(client.get(path).text)})
    return client.get("/manage").text


def test_sample_collect_export(tmp_path, capsys):
    requests = split_requests()[0][:4]
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "project"
    prompts.write_text("".join(json.dumps({"prompt": render_request(request)}) + "\n" for request in requests))
    arguments = [
        str(folder), "--prompts", str(prompts), "--policy", str(base_model_folder()), "--num-responses", "3",
        "--max-tokens", "24", "--seed", "3", "--judgements-per-item", "2",
    ]  # fmt: skip
    with collecting(*arguments, "--invite", "2") as (process, links):
        assert httpx2.get(links["url"], timeout=60.0).status_code == 200  # open while the model loads
        database = folder / "judgements.sqlite3"

        def num_items() -> int:
            with open_project(database) as project:
                return project.progress().num_items

        reports = work_together(links["url"], links["annotators"], [GOLD, NOISY], seed=1)
        said = stop(process)
    assert "everything that was acknowledged is kept" in said
    assert num_items() > 0
    assert [len(report.events) for report in reports] == [num_items()] * 2
    assert all(report.is_finished for report in reports)

    (sampled,) = folder.glob("responses-*.jsonl")
    written = sampled.stat().st_mtime_ns
    with collecting(*arguments) as (process, links):  # again: nothing is sampled or added twice
        assert links["annotators"] == []
        stop(process, signal.SIGTERM)
    assert sampled.stat().st_mtime_ns == written

    assert main(["export", str(folder), "--out", str(tmp_path / "judged.jsonl"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    groups = load_groups(tmp_path / "judged.jsonl").groups
    comparisons = [one for group in groups for one in group.judgements]
    assert counts["judgements"] == len(comparisons) == 2 * num_items()
    with open_project(database) as project:
        gold = next(one.pseudonym for one in project.annotators() if one.name == GOLD.name)
    agreed = [is_gold_right(group, one) for group in groups for one in group.judgements if one.judge == gold]
    known = [right for right in agreed if right is not None]
    assert sum(known) > 0.6 * len(known)  # P(right) = σ(Δ gold / ½) ≥ ½ on every pair
    assert measure_agreement(groups, num_resamples=20).num_judges == 2


def is_gold_right(group: Group, judgement: Comparison) -> bool | None:
    request = parse_request(group.prompt)
    better, worse = (
        gold_reward(request, group.responses[index].content, True) for index in (judgement.better, judgement.worse)
    )
    return None if better == worse else better > worse


def test_ctrl_c_while_the_policy_is_loading_leaves_no_process(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "three facts about bees, formally"}\n')
    options = ["--prompts", str(tmp_path / "prompts.jsonl"), "--policy", str(base_model_folder())]
    with collecting(str(tmp_path / "project"), *options) as (process, links):
        wait_until(lambda: sampling_processes(tmp_path), "the sampling process")
        with httpx2.Client(base_url=links["url"], timeout=60.0) as manager:
            assert "Responses are being written" in manager_page(links["manager"], manager)
        stop(process)
    assert sampling_processes(tmp_path) == []
    assert not list((tmp_path / "project").glob("responses-*.jsonl"))


def test_a_policy_that_cannot_be_loaded_is_told_to_the_manager(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    options = ["--prompts", str(tmp_path / "prompts.jsonl"), "--policy", str(tmp_path / "no-model")]
    with collecting(str(tmp_path / "project"), *options) as (process, links):
        manager = httpx2.Client(base_url=links["url"], timeout=60.0)
        pages = [manager_page(links["manager"], manager)]

        def is_told() -> bool:
            pages.append(manager.get("/manage").text)
            return "sampling failed" in pages[-1]

        wait_until(is_told, "what became of the sampling")
        manager.close()
        stop(process)
    assert "Responses are being written" in pages[0]
    assert re.search(r"sampling failed with exit code 1: accord: .*no-model", pages[-1])


def test_a_port_that_is_taken_is_said_so(tmp_path, capsys):
    write_groups(tmp_path / "groups.jsonl", make_groups(1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["collect", str(tmp_path / "p"), "--data", str(tmp_path / "groups.jsonl"), "--port", port]) == 1
    assert "choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prompts", "prompts.jsonl"], "one of --prompts and --policy"),
        (["--data", "a", "--policy", "b"], "one source of responses"),
        (["--host", "0.0.0.0"], "no secret for signing sessions"),
        (["--question", "guess"], "guess"),
        (["--guidelines", "no-such-file.md"], "no-such-file.md"),
        (["--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--prompts", "no-such-file.jsonl", "--policy", "m"], "no-such-file.jsonl"),
    ],
)
def test_wrong_arguments_are_said_before_the_page_opens(tmp_path, capsys, monkeypatch, arguments, what):
    monkeypatch.delenv("ACCORD_SECRET", raising=False)
    assert main(["collect", str(tmp_path / "p"), *arguments, "--port", "0"]) == 1
    assert what in capsys.readouterr().err


def test_a_project_keeps_its_settings(tmp_path, capsys):
    write_groups(tmp_path / "groups.jsonl", make_groups(1))
    options = [str(tmp_path / "p"), "--data", str(tmp_path / "groups.jsonl")]
    with collecting(*options, "--judgements-per-item", "2", is_in_background=True) as (process, links):
        assert len(links["annotators"]) == 3  # what a new project invites
        stop(process)
    assert main(["collect", *options, "--judgements-per-item", "3"]) == 1
    assert "another judgements_per_item" in capsys.readouterr().err


def test_exporting_what_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out.jsonl")]) == 1
    assert capsys.readouterr().err.startswith("accord: ")
    assert not (tmp_path / "nothing").exists()


def test_unfinished_work_is_exported_when_asked_for(tmp_path, capsys):
    write_groups(tmp_path / "groups.jsonl", make_groups(2))
    options = [str(tmp_path / "p"), "--data", str(tmp_path / "groups.jsonl"), "--judgements-per-item", "2"]
    with collecting(*options, "--invite", "1") as (process, links):
        report = work_through(links["url"], links["annotators"][0], lambda *_: {"level": -1, "comment": "why"}, limit=1)
        stop(process)
    assert (len(report.events), report.is_finished) == (1, False)
    with open_project(tmp_path / "p" / "judgements.sqlite3") as project:
        assert [event.id for event in project.events() if event.kind is EventKind.ANSWER] == list(report.events)
    for more, expected in (([], 0), (["--unfinished"], 1)):
        out = tmp_path / f"{expected}.jsonl"
        assert main(["export", str(tmp_path / "p"), "--out", str(out), "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["judgements"] == expected


def test_responses_without_words_are_refused(tmp_path, capsys):
    write_groups(
        tmp_path / "ids.jsonl", [Group(prompt="a", responses=(Response(token_ids=(1,)), Response(token_ids=(2,))))]
    )
    assert main(["collect", str(tmp_path / "p"), "--data", str(tmp_path / "ids.jsonl"), "--port", "0"]) == 1
    assert "accord: " in capsys.readouterr().err
