"""The whole way in a real browser: invited, qualified, twenty items by keyboard, a lost connection, a killed server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from page_visits import MODEL_NAME, known, make_groups

from accord.data import load_groups, write_groups
from accord.feedback.people.project import open_project
from accord.lab.base_model import base_model_folder

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (set CHROMIUM to its path)")

NUM_ITEMS = 20
PATIENCE = 60_000  # ms: the machine may be busy
ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Page:
    """`accord collect` in a process of its own, that can be killed and started again at the same address."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable, "-m", "accord.cli", "collect", str(folder), *arguments, "--port", str(self.port), "--json",
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any]:
        """Open the page and return its links."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the page did not open: {self.process.communicate()[1]}")
        return json.loads(line)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextmanager
def a_page(folder: Path, *arguments: str) -> Iterator[Page]:
    page = Page(folder, *arguments)
    try:
        yield page
    finally:
        if page.process is not None and page.process.poll() is None:
            os.killpg(page.process.pid, signal.SIGKILL)
            page.process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Hands:
    """Somebody at a keyboard who prefers the texts that begin with a word."""

    def __init__(self, page: Any, better: str) -> None:
        self.page, self.better = page, better

    def item(self) -> str:
        return self.page.get_attribute("[data-ready] article", "data-assignment", timeout=PATIENCE)

    def press_answer(self) -> str:
        """Press the key of the answer and return which item it was for."""
        item = self.item()
        first = self.page.inner_text(".response .text >> nth=0")
        self.page.keyboard.press("1" if first.startswith(self.better) else ";")
        return item

    def judge(self) -> str:
        item = self.press_answer()
        self.see("saved")
        self.next_after(item)
        return item

    def see(self, state: str) -> None:
        self.page.wait_for_selector(f"#status[data-state={state}]", state="attached", timeout=PATIENCE)

    def next_after(self, item: str) -> None:
        self.page.wait_for_selector(f'#item > :not([data-assignment="{item}"])', timeout=PATIENCE)


def num_judged(folder: Path) -> int:
    with open_project(folder / "judgements.sqlite3") as project:
        return project.progress().num_judgements


def test_from_invitation_to_export(browser, tmp_path):
    groups, folder = make_groups(NUM_ITEMS), tmp_path / "bees"
    write_groups(tmp_path / "groups.jsonl", groups)
    write_groups(tmp_path / "easy.jsonl", known(make_groups(2, first="known")))
    arguments = ["--data", str(tmp_path / "groups.jsonl"), "--qualification", str(tmp_path / "easy.jsonl")]
    with a_page(folder, *arguments, "--invite", "1") as page:
        links = page.start()
        context = browser.new_context()
        tab = context.new_page()
        problems: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))

        tab.goto(links["annotators"][0])
        tab.fill("#name", "Ada")
        tab.keyboard.press("Enter")
        tab.click("text=I have read them")
        learner = Hands(tab, "known")
        for _ in range(2):
            assert "Qualification" in tab.inner_text("article")
            learner.judge()
        hands = Hands(tab, "first")
        assert "Qualification" not in tab.inner_text("article")
        assert MODEL_NAME not in tab.content()

        for _ in range(5):
            last = hands.judge()
        tab.keyboard.press("u")  # undo one: the same item comes again
        tab.wait_for_selector(f'[data-assignment="{last}"]', timeout=PATIENCE)
        assert num_judged(folder) == 4
        assert hands.judge() == last

        context.set_offline(True)
        item = hands.press_answer()
        hands.see("waiting")
        assert "Not saved yet" in tab.inner_text("#status")
        assert hands.item() == item
        assert num_judged(folder) == 5
        context.set_offline(False)
        hands.next_after(item)
        assert num_judged(folder) == 6

        page.end(signal.SIGKILL)  # the server dies, and the tab is closed with an answer in it
        hands.press_answer()
        hands.see("waiting")
        tab.close()
        assert num_judged(folder) == 6
        manager_link = page.start()["manager"]
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(f"{links['url']}/judge")
        hands = Hands(tab, "first")
        hands.see("saved")
        tab.wait_for_selector("#item :enabled", timeout=PATIENCE)
        assert num_judged(folder) == 7

        for _ in range(NUM_ITEMS - 7):
            hands.judge()
        assert "Done. Thank you!" in tab.inner_text("#item")
        assert tab.inner_text("#judged") == str(NUM_ITEMS)

        desk = browser.new_context().new_page()
        desk.goto(manager_link)
        desk.fill("#name", "Max")
        desk.keyboard.press("Enter")
        assert f"{NUM_ITEMS} of {NUM_ITEMS} judgements" in " ".join(desk.inner_text(".tiles").split())
        with desk.expect_download() as download:
            desk.click("text=judged.jsonl >> nth=0")
        download.value.save_as(tmp_path / "judged.jsonl")
        assert problems == []
        context.close()
        desk.context.close()
        assert page.end(signal.SIGINT) == 0

    exported = load_groups(tmp_path / "judged.jsonl").groups
    assert sorted(group.prompt for group in exported) == sorted(group.prompt for group in groups)
    assert [[(one.better, one.worse) for one in group.judgements] for group in exported] == [[(0, 1)]] * NUM_ITEMS
    seconds = [row["seconds"] for group in exported for row in group.extra["collected"]["judgements"]]
    assert all(second is not None and second > 0 for second in seconds)
    check_that_align_reads(tmp_path / "judged.jsonl", tmp_path / "run")


def check_that_align_reads(path: Path, run: Path) -> None:
    command = [
        sys.executable, "-m", "accord.cli", "align", "--model", str(base_model_folder()), "--data", str(path),
        "--out", str(run), "--dry-run", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]


def test_rankings_ratings_and_edits_by_keyboard(browser, tmp_path):
    write_groups(tmp_path / "groups.jsonl", make_groups(1, num_responses=3))
    kinds = [word for kind in ("ranking", "rating", "critique") for word in ("--question", kind)]
    with a_page(tmp_path / "p", "--data", str(tmp_path / "groups.jsonl"), "--invite", "1", *kinds) as page:
        links = page.start()
        tab = browser.new_page()
        tab.goto(links["annotators"][0])
        tab.fill("#name", "Ada")
        tab.keyboard.press("Enter")
        tab.click("text=To the items")
        given: dict[str, int] = {}
        for _ in range(1 + 3 + 3):
            hands = Hands(tab, "")
            item, question = hands.item(), tab.get_attribute("article", "data-question")
            given[question] = given.get(question, 0) + 1
            if question == "ranking":
                for key in "312":
                    tab.keyboard.press(key)
                tab.keyboard.press("Enter")
            elif question == "rating":
                for key in "543":
                    tab.keyboard.press(key)
                tab.keyboard.press("Enter")
            else:
                tab.fill("[data-text]", "u 1 x: keys are letters while one writes")
                tab.fill("[data-edited]", "a better text")
                tab.keyboard.press("Control+Enter")
            hands.next_after(item)
        tab.wait_for_selector("text=Done. Thank you!", timeout=PATIENCE)
        tab.context.close()
        assert page.end(signal.SIGTERM) == 0
    assert given == {"ranking": 1, "rating": 3, "critique": 3}
    with open_project(tmp_path / "p" / "judgements.sqlite3") as project:
        answers = [event.payload for event in project.events() if str(event.kind) == "answer"]
    assert [one["order"] for one in answers if "order" in one] == [[[2], [0], [1]]]
    ratings = {"helpful": 5, "honest": 4, "harmless": 3}
    assert [one["ratings"] for one in answers if "ratings" in one] == [ratings] * 3
    assert [one["edited"] for one in answers if "edited" in one] == ["a better text"] * 3


def test_a_phone(browser, tmp_path):
    """Everything that is touched is at least 44 px large, nothing is cut off, and a ranking can be dragged."""
    write_groups(tmp_path / "groups.jsonl", make_groups(1, first="a-long-word" * 30, num_responses=3))
    kinds = [word for kind in ("ranking", "pairwise8", "rating", "edit") for word in ("--question", kind)]
    with a_page(tmp_path / "p", "--data", str(tmp_path / "groups.jsonl"), "--invite", "1", *kinds) as page:
        links = page.start()
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
        tab = context.new_page()
        tab.goto(links["annotators"][0])
        check_sizes(tab)
        tab.fill("#name", "Ada")
        tab.click("text=Begin")
        tab.wait_for_selector("text=How it works", timeout=PATIENCE)
        check_sizes(tab)
        tab.click("text=To the items")
        seen = set()
        while tab.query_selector("article"):
            hands = Hands(tab, "")
            item, question = hands.item(), tab.get_attribute("article", "data-question")
            check_sizes(tab)
            if question == "ranking":
                drag(tab, 2, 0)
                tab.click("text=Save this order")
            else:
                tab.click("summary >> nth=-2")
                check_sizes(tab)
                tab.click("[data-pass=skip] [data-reason] >> nth=0")
            seen.add(question)
            hands.next_after(item)
        assert seen == {"ranking", "pairwise8", "rating", "edit"}
        manager = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        manager.goto(links["manager"])
        manager.fill("#name", "Max")
        manager.keyboard.press("Enter")
        manager.wait_for_selector(".tiles", timeout=PATIENCE)
        check_sizes(manager)
        context.close()
        manager.context.close()
        page.end(signal.SIGINT)
    with open_project(tmp_path / "p" / "judgements.sqlite3") as project:
        orders = [event.payload["order"] for event in project.events() if "order" in event.payload]
    assert orders == [[[2], [0], [1]]]


def check_sizes(tab: Any) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = tab.evaluate(
        """() => [...document.querySelectorAll("button, a, summary, input:not([type=hidden]), select, .points span")]
        .filter((one) => !one.closest(".text") && !one.matches(".skip-link, .points input"))
        .map((one) => [one.getBoundingClientRect(), one.outerHTML.slice(0, 120)])
        .filter(([box]) => box.width && Math.min(box.width, box.height) < 44)
        .map(([box, html]) => html)"""
    )
    assert small == []


def drag(tab: Any, place: int, onto: int) -> None:
    def middle(row: int) -> tuple[float, float]:
        box = tab.locator("[data-order] .handle").nth(row).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    tab.locator("[data-order]").scroll_into_view_if_needed()
    start, end = middle(place), middle(onto)
    tab.mouse.move(*start)
    tab.mouse.down()
    for step in range(1, 21):
        tab.mouse.move(end[0], start[1] + (end[1] - 25 - start[1]) * step / 20)
    tab.mouse.up()
