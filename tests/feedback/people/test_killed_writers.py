"""SIGKILL at random moments: nothing that was acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from questions import group

from accord.errors import FeedbackError
from accord.feedback.people import EventKind, Project, ProjectSettings, create_project, open_project

NUM_ROUNDS = int(os.environ.get("ACCORD_TEST_KILLS", "10"))
WRITERS = Path(__file__).with_name("writers.py")


def kill_writers(url: str, annotators: list[int], rng: random.Random) -> tuple[list[list[str]], int]:
    """Let processes judge and kill them, NUM_ROUNDS times; return what they said and how many died at work."""
    said: list[list[str]] = []
    num_killed = 0
    with subprocess.Popen(
        [sys.executable, str(WRITERS), "to-kill", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        for _ in range(NUM_ROUNDS):
            program.stdin.write(" ".join(map(str, annotators)) + "\n")
            program.stdin.flush()
            children: list[int] = []
            num_acknowledged, wanted = 0, rng.randint(1, 6)
            while len(children) < len(annotators) or num_acknowledged < wanted:
                words = program.stdout.readline().split()
                assert words[:1] not in ([], ["dead"]), "a writer died by itself"
                said.append(words)
                if words[0] == "child":
                    children.append(int(words[1]))
                num_acknowledged += words[0] == "ack"
            for child in rng.sample(children, len(children)):
                time.sleep(rng.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
                num_killed += 1
            while (words := program.stdout.readline().split()) != ["dead"]:
                said.append(words)
        program.stdin.close()
    return said, num_killed


def test_no_acknowledged_judgement_is_lost_and_none_is_there_twice(database: str):
    with create_project(database, "study", ProjectSettings(judgements_per_item=2, lease_seconds=3600)) as project:
        project.add_items([group(number) for number in range(1500)])
        annotators = [project.add_annotator(name).id for name in ("Ann", "Bob")]
    said, num_killed = kill_writers(database, annotators, random.Random(11))
    tried = {words[1]: (words[2], int(words[3])) for words in said if words[0] == "try"}
    acknowledged = {words[1]: int(words[2]) for words in said if words[0] == "ack"}
    assert num_killed == 2 * NUM_ROUNDS
    assert len(acknowledged) >= NUM_ROUNDS
    with open_project(database) as project:
        stored = {event.idempotency_key: event for event in project.events()}
        assert len(stored) == len(project.events())
        lost = [key for key, event in acknowledged.items() if key not in stored or stored[key].id != event]
        assert lost == []
        assert all(stored[key].assignment_id == tried[key][0] for key in stored)
        assert all(stored[key].payload["level"] == tried[key][1] for key in stored)
        num_unheard = sum(key in stored and key not in acknowledged for key in tried)
        print(
            f"{num_killed} killed, {len(acknowledged)} acknowledged, {num_unheard} stored but not acknowledged in time"
        )
        # what was not acknowledged is sent again, as the page does: either it was stored, and is the same event, or not
        for key, (assignment, level) in tried.items():
            if key in acknowledged:
                continue
            event = send_again(project, annotators, assignment, level, key)
            assert event is None or key not in stored or stored[key].id == event
        answers = Counter(event.assignment_id for event in project.events() if event.kind is EventKind.ANSWER)
        assert set(answers.values()) == {1}
        per_item = Counter(event.item_id for event in project.events())
        assert all(project.item(item).num_judgements == count for item, count in list(per_item.items())[:50])
        assert project.progress().num_judgements == sum(per_item.values()) >= len(acknowledged)


def send_again(project: Project, annotators: list[int], assignment: str, level: int, key: str) -> int | None:
    """Return the event; None where the assignment was answered under another key after its owner came back."""
    for annotator in annotators:
        with suppress(FeedbackError):
            return project.submit(annotator, assignment, {"level": level}, key)
    return None
