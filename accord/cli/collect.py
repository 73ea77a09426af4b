"""`accord collect` and `accord export`: open the page where people judge, and write down what they judged."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.cli.command import add_command
from accord.errors import ConfigError, FeedbackError

if TYPE_CHECKING:
    from accord.feedback.people.project import Project
    from accord.feedback.people.values import ProjectSettings
    from accord.records import Group
    from accord.web.serving import Preparation

DATABASE = "judgements.sqlite3"
NEW_PROJECT_INVITATIONS = 3
QUESTIONS = "pairwise8, pairwise_ties, thumbs, ranking, rating, critique or edit"


def add_commands(commands: Any) -> None:
    """Add `collect` and `export`."""
    collect = add_command(commands, "collect", _collect, "open a page where invited people judge responses")
    collect.add_argument("project", metavar="PROJECT", help="folder of the project; made where it is not there")
    what = collect.add_argument_group("what is judged")
    what.add_argument("--prompts", metavar="FILE", help="prompts to be answered by --policy")
    what.add_argument("--policy", metavar="MODEL", help="the model that answers them, in a process of its own")
    what.add_argument("--data", metavar="FILE", help="groups with responses, instead of prompts and policy")
    what.add_argument("--num-responses", type=int, default=2, metavar="K")
    what.add_argument("--max-tokens", type=int, default=256)
    what.add_argument("--temperature", type=float, default=1.0)
    what.add_argument("--top-p", type=float, default=1.0)
    what.add_argument("--seed", type=int, default=0, help="of sampling, and of the order of items in a new project")
    what.add_argument("--chat", default="auto", help="chat template for the prompts (auto, own, transcript, a file)")
    what.add_argument("--gold", metavar="FILE", help="groups with known answers, mixed in among the others")
    what.add_argument("--qualification", metavar="FILE", help="groups with known answers, asked before any other")
    how = collect.add_argument_group("how (of a new project; kept from then on)")
    how.add_argument("--question", action="append", metavar="KIND", help=f"{QUESTIONS}; may be given again")
    how.add_argument("--guidelines", metavar="FILE", help="Markdown, shown before the first item")
    how.add_argument("--judgements-per-item", type=int, metavar="N")
    how.add_argument("--attributes", metavar="A,B,…", help="of the question rating")
    how.add_argument("--gold-share", type=float, metavar="SHARE")
    how.add_argument("--repeat-share", type=float, metavar="SHARE")
    where = collect.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="anything else needs the variable ACCORD_SECRET")
    where.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    where.add_argument("--public-url", metavar="URL", help="address people open, where a proxy stands before the page")
    where.add_argument("--invite", type=int, metavar="N", help="annotators to invite now (a new project: 3, else 0)")
    _add_database(collect)
    export = add_command(commands, "export", _export, "write what people judged for `accord align` and `accord reward`")
    export.add_argument("project", metavar="PROJECT")
    export.add_argument("--unfinished", action="store_true", help="with items that too few annotators judged so far")
    export.add_argument("--repeats", action="store_true", help="with second answers of one annotator to one item")
    export.add_argument("--gold", action="store_true", help="with answers to items whose answer was known")
    export.add_argument("--out", required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .parquet")
    _add_database(export)


def _add_database(command: argparse.ArgumentParser) -> None:
    command.add_argument("--database", metavar="URL", help=f"postgresql://… (default: {DATABASE} in PROJECT)")


def _collect(parsed: argparse.Namespace) -> int:
    try:
        from accord.web.app import create_app
        from accord.web.managing import invitation_link
        from accord.web.security import WebSettings, check_settings, is_loopback, read_secret
        from accord.web.serving import listen, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name} — install it with: pip install 'accord[web]'") from error
    from accord.feedback.people.values import Role

    folder = Path(parsed.project)
    secret, is_given = read_secret(folder)
    settings = WebSettings(
        host=parsed.host, port=parsed.port, secret=secret, is_secret_given=is_given, public_url=parsed.public_url
    )
    check_settings(settings)
    if not (is_loopback(parsed.host) or settings.is_secure):
        print("accord: the page is open to others over plain http; whoever listens can read along", file=sys.stderr)
    with listen(parsed.host, parsed.port) as bound:
        settings = replace(settings, port=bound.getsockname()[1])
        project, is_new = _open_or_create(folder, parsed)
        with project:
            preparation = _prepare(project, folder, parsed)
            count = parsed.invite if parsed.invite is not None else NEW_PROJECT_INVITATIONS * is_new
            manager = invitation_link(settings.url, project.create_invitation(Role.MANAGER))
            annotators = [invitation_link(settings.url, project.create_invitation()) for _ in range(count)]
            serve(
                create_app(project, settings),
                bound,
                preparation=preparation,
                when_open=lambda: _print_links(settings.url, manager, annotators, as_json=parsed.json),
            )
    print("accord: the page is closed; everything that was acknowledged is kept", file=sys.stderr)
    return 0


def _print_links(url: str, manager: str, annotators: list[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, "manager": manager, "annotators": annotators}), flush=True)
        return
    print(f"The page is open at {url}; Ctrl-C closes it. Each link works once.\n\n  manager     {manager}")
    for link in annotators:
        print(f"  annotator   {link}")
    print(flush=True)


def _export(parsed: argparse.Namespace) -> int:
    from accord.feedback.people.export import ExportSettings
    from accord.feedback.people.project import open_project

    wanted = ExportSettings(
        include_unfinished=parsed.unfinished, include_repeats=parsed.repeats, include_gold=parsed.gold
    )
    folder = Path(parsed.project)
    with open_project(_database(folder, parsed), folder.resolve().name) as project:
        groups = project.export(parsed.out, wanted)
    counts = {"groups": len(groups), "judgements": sum(len(group.judgements) for group in groups), "path": parsed.out}
    if parsed.json:
        print(json.dumps(counts))
    else:
        print(f"{counts['judgements']} judgements of {counts['groups']} groups written to {parsed.out}")
    return 0


# --- the project -----------------------------------------------------------------------------------------------------


def _database(folder: Path, parsed: argparse.Namespace) -> str | Path:
    return parsed.database or folder / DATABASE


def _open_or_create(folder: Path, parsed: argparse.Namespace) -> tuple[Project, bool]:
    from accord.feedback.people.project import create_project, list_projects, open_project

    url, name = _database(folder, parsed), folder.resolve().name
    is_there = bool(parsed.database) or (folder / DATABASE).exists()
    if not (is_there and name in _names(list_projects, url)):
        return create_project(url, name, _new_settings(parsed)), True
    project = open_project(url, name)
    changed = [key for key, value in _given_settings(parsed).items() if value != getattr(project.settings, key)]
    if changed:
        project.close()
        raise ConfigError(
            f"got another {changed[0]} than the project {name!r} was made with — expected the same: what was judged "
            "already would mean something else — leave it out, or begin a new project"
        )
    return project, False


def _names(list_projects: Any, url: str | Path) -> list[str]:
    try:
        return list_projects(url)
    except FeedbackError:  # an empty database has no projects yet; creating one says what else is wrong
        return []


def _new_settings(parsed: argparse.Namespace) -> ProjectSettings:
    from accord.feedback.people.values import ProjectSettings

    given = _given_settings(parsed)
    given.setdefault("gold_share", 0.1 if parsed.gold else 0.0)
    return ProjectSettings(seed=parsed.seed, **given)


def _given_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the project's settings that the command line names."""
    from accord.feedback.people.values import settings_from_json

    given: dict[str, Any] = {
        "kinds": parsed.question,
        "judgements_per_item": parsed.judgements_per_item,
        "attributes": parsed.attributes.split(",") if parsed.attributes else None,
        "gold_share": parsed.gold_share,
        "repeat_share": parsed.repeat_share,
    }
    if parsed.guidelines:
        try:
            given["guidelines"] = Path(parsed.guidelines).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{parsed.guidelines}: cannot be read as guidelines ({error})") from error
    named = {key: value for key, value in given.items() if value is not None}
    settings = settings_from_json(named)
    return {key: getattr(settings, key) for key in named}


# --- what is judged --------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A process that samples responses into a file, so that the page need not load a model."""

    command: list[str]
    out: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    is_stopped: bool = field(default=False, init=False)

    def run(self) -> None:
        """Sample, unless the file is there already. Raises FeedbackError when the process fails."""
        if self.out.exists():
            return
        partial = self.out.with_name(f"partial-{self.out.name}")
        log = self.out.with_suffix(".log")
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*self.command, "--out", str(partial)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
            if self.is_stopped:
                self.stop()
            code = self.process.wait()
        if self.is_stopped:
            return
        if code != 0:
            lines = log.read_text("utf-8", "replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise FeedbackError(f"sampling failed with exit code {code}: {said} — all it said is in {log}")
        os.replace(partial, self.out)

    def stop(self) -> None:
        """End the process and what it started."""
        self.is_stopped = True
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)


def _prepare(project: Project, folder: Path, parsed: argparse.Namespace) -> Preparation | None:
    """Add what is there to the project, and return the work that adds the rest."""
    from accord.data import load_groups
    from accord.feedback.people.values import ItemRole
    from accord.web.serving import Preparation

    if parsed.data and (parsed.prompts or parsed.policy):
        raise ConfigError("got --data and --prompts or --policy — expected one source of responses — leave one out")
    if bool(parsed.prompts) != bool(parsed.policy):
        raise ConfigError("got one of --prompts and --policy — expected both: a policy answers prompts — add the other")
    for path, role in ((parsed.gold, ItemRole.GOLD), (parsed.qualification, ItemRole.QUALIFICATION)):
        if path:
            project.add_items(load_groups(path).groups, role=role)
    if parsed.data:
        _add_work(project, load_groups(parsed.data).groups)
    if not parsed.policy:
        return None
    worker = _sampling(folder, parsed)

    def work() -> None:
        worker.run()
        if not worker.is_stopped:
            _add_work(project, load_groups(worker.out).groups)

    return Preparation(work=work, stop=worker.stop, sentence="Responses are being written.")


def _add_work(project: Project, groups: list[Group]) -> None:
    for kind in project.settings.kinds:
        project.add_items(groups, kind=kind)


def _sampling(folder: Path, parsed: argparse.Namespace) -> _Worker:
    options = {
        "--model": parsed.policy, "--prompts": parsed.prompts, "--num-responses": parsed.num_responses,
        "--max-tokens": parsed.max_tokens, "--temperature": parsed.temperature, "--top-p": parsed.top_p,
        "--seed": parsed.seed, "--chat": parsed.chat,
    }  # fmt: skip
    if not Path(parsed.prompts).exists():
        raise ConfigError(f"got --prompts {parsed.prompts} — expected a file of prompts that is there")
    prompts = hashlib.sha256(Path(parsed.prompts).read_bytes()).hexdigest() if Path(parsed.prompts).is_file() else ""
    mark = hashlib.sha256(json.dumps([options, prompts], sort_keys=True).encode()).hexdigest()[:10]
    arguments = [text for name, value in options.items() for text in (name, str(value))]
    return _Worker(
        command=[sys.executable, "-m", "accord.cli", "sample", *arguments], out=folder / f"responses-{mark}.jsonl"
    )
