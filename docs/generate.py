"""Write the parts of the documentation that the code knows better: `python -m docs.generate` (`--check` only compares).

README.md           the table of methods, between its markers
docs/methods.md     every objective in full
docs/settings.md    every setting of a run: key, values, default, meaning
docs/reference.md   the public Python names with their docstrings
docs/objectives/    a page per objective: formula, use, defaults, limits, citation, its lines of the certificate
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import accord
from accord.config import SHORT, AlignConfig, Section
from accord.objectives import OBJECTIVES, methods_table
from docs import objective_pages

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
NOTE = "<!-- Written by `python -m docs.generate`; change the code, not this page. -->"

# What settings mean whose field in config.py carries no description.
MEANINGS = {
    "model.precision": "`float32`, 16 bytes per trained parameter with AdamW; `bfloat16`, with adapters only: "
    "2 bytes per frozen weight; `mixed`, float32 weights with bfloat16 products",
    "model.gradient_checkpointing": "recompute layers in the backward pass: less memory, more time",
    "model.compile": "`torch.compile` the backbone",
    "model.revision": "of a Hub id: branch, tag or commit",
    "model.trust_remote_code": "run code that comes with the model",
    "data.split": "of a folder (files named after it) or a Hub data set",
    "data.skip_bad_rows": "keep malformed rows aside, counted in the data report, instead of stopping",
    "data.on_too_long": "what happens to a row beyond `data.max_tokens`, see [formats](formats.md)",
    "data.on_empty": "empty responses",
    "data.on_identical": "compared responses with equal tokens",
    "data.on_prompt_mismatch": "pairs whose prompts differ; `split` trains what follows the turns they share",
    "template.append_eos": "end a response by EOS unless the template ended its turn or it was cut",
    "template.add_bos": "`auto`: as the tokenizer does by itself; `always`: once",
    "template.train_turns": "assistant turns of a response that are trained",
    "template.on_error": "conversations the template refuses",
    "objective.name": "one of the [methods](methods.md); its own settings are `objective.SETTING`",
    "train.epochs": "passes over the data; may be a fraction",
    "train.schedule": "after the warm-up; `linear` and `cosine` end at 0",
    "train.weight_decay": "on matrices only, not on biases and norms",
    "train.adam_beta1": "decay of AdamW's first moment",
    "train.adam_beta2": "decay of AdamW's second moment",
    "train.adam_eps": "AdamW's ε",
    "train.max_grad_norm": "clip gradients to this norm; `null` = never",
    "train.seed": "of the order of the data, the held-out share and held-out samples",
    "train.log_every": "steps between two lines of metrics",
    "train.keep_last": "checkpoints kept, besides the one with the lowest held-out loss",
    "evaluate.at_start": "evaluate before the first step, too",
    "evaluate.sample_tokens": "longest held-out answer",
    "tracking.wandb_project": "also log to Weights & Biases (extra `wandb`)",
}


def methods_rows() -> Iterator[str]:
    """Yield the table of methods, with links relative to docs/."""
    yield "| objective | family | reads | reference | settings and defaults | proof | paper |"
    yield "|---|---|---|---|---|---|---|"
    for row in methods_table():
        reads = ", ".join(row["needs"]).replace("_", " ") or "any responses"
        defaults = ", ".join(f"`{name}={value}`" for name, value in row["defaults"].items())
        reference = "yes" if row["reference"] else "no"
        link = f"[`{row['name']}`](objectives/{row['name']}.md)"
        yield f"| {link} | {row['family']} | {reads} | {reference} | {defaults} | {row['proof']} | {row['paper']} |"


def family_rows() -> Iterator[str]:
    """Yield the methods by family, with links relative to the root: a table short enough for the README."""
    yield "| family | methods |"
    yield "|---|---|"
    for family in dict.fromkeys(spec.family for spec in OBJECTIVES.values()):
        names = [f"[`{name}`](docs/objectives/{name}.md)" for name, spec in OBJECTIVES.items() if spec.family == family]
        yield f"| {family.replace('_', ' ')} | {', '.join(names)} |"


def readme() -> str:
    """Return README.md with a fresh table of methods."""
    text = (ROOT / "README.md").read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    table = "\n".join(family_rows())
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def methods() -> str:
    """Return docs/methods.md: the table, then each row in full."""
    lines = [
        NOTE,
        "",
        "# Methods",
        "",
        "`accord methods` prints this table, `accord methods NAME` one row in full.",
        "",
    ]
    lines += [*methods_rows(), ""]
    lines += _wrapped(
        "Beside log-probabilities and lengths, an objective may read judgements, such as `preferences` (pairs, "
        "rankings, or ratings and labels turned into pairs) and `labels` (thumbs up or down, or the two ends of "
        "pairs), and what scoring makes, such as `tokens` or the `mismatched kl` (a batch estimate, one extra pass "
        "without gradient). A file that gives none of what is needed is refused before training."
    )
    lines += ["", "## What they do", ""]
    lines += [f"- [`{name}`](objectives/{name}.md): {spec.summary}" for name, spec in OBJECTIVES.items()]
    return "\n".join(lines) + "\n"


OPEN_SECTIONS = {
    "reward": ("how_to/rewards.md", "A section per source of feedback, with its weight and settings"),
    "advantage": ("how_to/online_methods.md", "`advantage.name` and the settings of that estimator"),
}
"""Sections whose keys depend on what they name."""


def settings() -> str:
    """Return docs/settings.md: every key of a run but those of the objectives."""
    short = ", ".join(f"`{word}` = `{key}`" for word, key in SHORT.items())
    lines = [NOTE, "", "# Settings", ""]
    lines += _wrapped(
        "Keys of a recipe, of `key=value` on the command line and of `align(**{key: value})`. Later ones win, flags "
        "`--model`, `--data` and `--out` last. Values are read as YAML: `null` is none, `1e-6` a number. An unknown "
        f"key is an error that names the nearest one. Short forms: {short}. The settings of an objective are on the "
        "page of the [methods](methods.md)."
    )
    rows: list[str] = []
    for name, field in AlignConfig.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            if name not in OPEN_SECTIONS:
                rows.append(_setting("objective.name" if name == "objective" else name, field))
            continue
        lines += ["", f"## {name}", "", _unwrapped(kind.__doc__), "", *_HEAD]
        lines += [_setting(f"{name}.{key}", item) for key, item in kind.model_fields.items()]
    lines += ["", "## Others", "", *_HEAD, *rows]
    for name, (page, what) in OPEN_SECTIONS.items():
        lines += ["", f"## {name}", ""]
        lines += _wrapped(f"{what}: see [{page.rsplit('/', 1)[-1].removesuffix('.md').replace('_', ' ')}]({page}).")
    return "\n".join(lines) + "\n"


_HEAD = ("| key | values | default | meaning |", "|---|---|---|---|")


def meaning(key: str, field: FieldInfo) -> str:
    """Return what a setting means; it is written down in exactly one of the two places."""
    if bool(field.description) == (key in MEANINGS):
        raise ValueError(f"{key}: describe it in config.py or in MEANINGS of docs/generate.py, not in both or neither")
    return (field.description or MEANINGS[key]).replace("<", r"\<")


def _setting(key: str, field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if field.metadata:
        annotation = typing.Annotated[(annotation, *field.metadata)]  # type: ignore[valid-type]  # pydantic took it apart
    default = field.default
    if key == "objective.name":
        annotation, default = Literal[tuple(OBJECTIVES)], field.default.name
    shown = "required" if default is PydanticUndefined else f"`{_word(default)}`" if default != "" else "empty"
    return f"| `{key}` | {_values(annotation)} | {shown} | {meaning(key, field)} |"


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(annotation: Any) -> str:
    """Say in words what a type admits: "number ≥ 0", "`a`, `b`", "text or null"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = " and ".join(part for part in map(_bound, args[1:]) if part)
        return f"{_values(args[0])} {bounds}".strip()
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is list:
        return f"list of {_values(args[0])}"
    if args:  # a union
        return " or ".join(_values(part) for part in args)
    words = {float: "number", int: "whole number", bool: "`true`, `false`", str: "text", type(None): "`null`"}
    return words[annotation]


def _bound(mark: Any) -> str:
    match mark:
        case Ge(ge=low):
            return f"≥ {low}"
        case Gt(gt=low):
            return f"> {low}"
        case Le(le=high):
            return f"≤ {high}"
        case Lt(lt=high):
            return f"< {high}"
        case Interval(gt=gt, ge=ge, lt=lt, le=le):
            parts = (("> ", gt), ("≥ ", ge), ("< ", lt), ("≤ ", le))
            return " and ".join(f"{sign}{value}" for sign, value in parts if value is not None)
    return ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_long_words=False)


def _unwrapped(text: str | None) -> str:
    return " ".join((text or "").split())


def reference() -> str:
    """Return docs/reference.md: the public names, and a few more that they hand out, with their docstrings."""
    lines = [NOTE, "", "# Python reference", ""]
    lines += ["`accord` exports these names; each is imported on first use, so that `import accord` stays light."]
    for name in accord.__all__:
        lines += _entry(f"accord.{name}", accord._PLACES[name], name)
    lines += ["", "## Records and judgements", "", "Plain Python, from `accord.records`."]
    for name in ("Group", "Response", "Message", "Comparison", "Rating", "Label", "Ranking", "Critique", "Verdict"):
        lines += _entry(f"accord.records.{name}", "accord.records", name, level="###")
    lines += ["", "## Errors", "", "All are children of `AccordError`; the command line prints them as one line."]
    for name in ("ConfigError", "DataError", "PolicyError", "TrainingError", "StoreError"):
        lines += _entry(f"accord.errors.{name}", "accord.errors", name, level="###")
    return "\n".join(lines) + "\n"


def _entry(title: str, place: str, name: str, level: str = "##") -> Iterator[str]:
    thing = getattr(import_module(place), name)
    yield from ("", f"{level} {title}", "")
    if inspect.isfunction(thing):
        yield from ("```python", _signature(name, thing), "```", "")
    if not isinstance(thing, dict):
        yield from ("```text", inspect.getdoc(thing) or "", "```")
    else:
        yield "A dictionary from name to `ObjectiveSpec`: " + ", ".join(f"`{key}`" for key in thing) + "."
    if inspect.isclass(thing):
        yield from _methods(thing)


def _methods(thing: type) -> Iterator[str]:
    for key, value in vars(thing).items():
        if key.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"- `{key}`: {_first(value.__doc__)}"
        elif inspect.isfunction(value):
            yield f"- `{_signature(key, value).splitlines()[0].rstrip('(')}(…)`: {_first(value.__doc__)}"


def _first(doc: str | None) -> str:
    return _unwrapped(inspect.cleandoc(doc or "").partition("\n\n")[0])


def _signature(name: str, function: Any) -> str:
    parts, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        text = f"{stars}{parameter.name}: {parameter.annotation}"
        if parameter.default is not inspect.Parameter.empty:
            text += " = ..." if callable(parameter.default) else f" = {parameter.default!r}"
        parts.append(text)
    returned = inspect.signature(function).return_annotation
    return name + "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {returned}"


PAGES = {
    "README.md": readme, "docs/methods.md": methods, "docs/settings.md": settings, "docs/reference.md": reference,
    **{
        f"docs/objectives/{name}.md": partial(objective_pages.page, name, note=NOTE, values=lambda kind: _values(kind))
        for name in OBJECTIVES
    },
}  # fmt: skip


def outdated() -> list[str]:
    """Return the pages that differ from what the code says now."""
    return [name for name, page in PAGES.items() if _read(name) != page()]


def _read(name: str) -> str:
    path = ROOT / name
    return path.read_text("utf-8") if path.exists() else ""


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are out of date."""
    stale = outdated()
    if "--check" not in arguments:
        for name in stale:
            (ROOT / name).write_text(PAGES[name](), "utf-8")
    print("\n".join(stale) or "all pages are up to date")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
