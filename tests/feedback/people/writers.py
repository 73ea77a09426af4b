"""A program of processes that judge and say what was acknowledged: some to be killed, some to be counted.

`python writers.py to-kill URL`: for each line "ANNOTATOR …" on stdin, a fresh process per annotator judges until it is
killed; prints "child PID", "try KEY ASSIGNMENT LEVEL", "ack KEY EVENT", and "dead" once all of them are gone.
`python writers.py to-count URL ANNOTATOR COUNT THINK …`: a thread per annotator judges COUNT items, thinking for THINK
seconds on average before each answer; prints "ack KEY EVENT MILLISECONDS" per judgement.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time

from accord.feedback.people import Idle, Project, open_project


def say(*words: object) -> None:
    """Write one line at once: a line is never half there."""
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def judge_until_killed(url: str, annotator: int) -> None:
    """Judge as a page would: the key is made before the first attempt, and the acknowledgement comes after the call."""
    rng = random.Random(os.getpid())
    with open_project(url) as project:
        while not isinstance(found := project.next_assignment(annotator), Idle):
            key, level = f"{found.id}-{rng.getrandbits(32):08x}", rng.choice((-4, -3, -2, -1, 1, 2, 3, 4))
            say("try", key, found.id, level)
            say("ack", key, project.submit(annotator, found.id, {"level": level}, key, 1.0))
        say("idle", found.reason)


def wait_for_orders(url: str) -> None:
    """Start the processes asked for, and say when they are dead."""
    for line in sys.stdin:
        children = []
        for annotator in line.split():
            child = os.fork()
            if child == 0:
                judge_until_killed(url, int(annotator))
                os._exit(0)
            children.append(child)
            say("child", child)
        for child in children:
            os.waitpid(child, 0)
        say("dead")


def judge_and_count(project: Project, annotator: int, count: int, think: float) -> None:
    """Judge `count` items, saying how many milliseconds each call of `submit` and the next item took."""
    rng = random.Random(annotator)
    found = project.next_assignment(annotator)
    for _ in range(count):
        assert not isinstance(found, Idle), found
        time.sleep(rng.uniform(0, 2 * think))
        begin = time.perf_counter()
        key = f"key-{found.id}"
        event = project.submit(annotator, found.id, {"level": 1}, key, 1.0)
        middle = time.perf_counter()
        found = project.next_assignment(annotator)
        end = time.perf_counter()
        say("ack", key, event, f"{1e3 * (middle - begin):.2f}", f"{1e3 * (end - middle):.2f}")


def count_judgements(url: str, annotators: list[int], count: int, think: float) -> None:
    """Run a thread per annotator over one open project."""
    with open_project(url) as project:
        threads = [
            threading.Thread(target=judge_and_count, args=(project, annotator, count, think))
            for annotator in annotators
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "to-kill":
        wait_for_orders(sys.argv[2])
    else:
        count_judgements(
            sys.argv[2], [int(word) for word in sys.argv[3].split(",")], int(sys.argv[4]), float(sys.argv[5])
        )
