"""A page per objective, made of its docstring, its row and its lines of the certificate."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accord.objectives import OBJECTIVES, Need, ObjectiveSpec
from accord.objectives.logic.forms import form_of

ROOT = Path(__file__).resolve().parents[1]
CERTIFICATE = ROOT / "docs" / "certificate.json"  # accord verify --json > docs/certificate.json

TITLES = {
    "Formula": "Formula",
    "Reduction": "Reduction",
    "Which responses": "Which responses",
    "Gradient": "Gradient",
    "Optimum": "Optimum",
    "Use": "When to use",
    "Limits": "Limits",
    "Source": "Citation",
}
NOTATION = (
    "Notation: y_w the better and y_l the worse response of a judged pair, |y| the number of response tokens, end of "
    "sequence included, u(y) = log π(y|x) − log π_ref(y|x) in nats summed over them, D = u(y_w) − u(y_l), p the share "
    "of raters who prefer y_w, σ the logistic function."
)
OF_ROLLOUTS = (
    "Notation: ℓ_t = log π(y_t|·), ρ_t = π/π_old of a token, Δ_t its logarithm, π_old the policy that the rollout "
    "began with, A_t the advantage, |y| the number of response tokens, u = log π − log π_ref in nats, sg[·] held "
    "constant in the gradient. Which KL, how tokens are added up, and the other settings that all objectives of a "
    "rollout share: [online methods](../how_to/online_methods.md)."
)
PROOFS = {
    "optimum": "training in the enumerable world reaches the closed form that theory names",
    "fixed point": "the gradient vanishes exactly where theory says",
    "identity": "it equals other rows where theory says it must",
    "bound": "its value stays on the side of another that theory names",
    "direction": "it has no finite optimum; its first step points where theory says",
}


def documented(spec: ObjectiveSpec) -> Any:
    """Return the function whose docstring describes a row."""
    return spec.fn.func if isinstance(spec.fn, partial) else spec.fn


def sections(spec: ObjectiveSpec) -> dict[str, str]:
    """Return the parts of a row's docstring by label; "" is the first sentence, "Example" the doctest."""
    text, _, example = inspect.cleandoc(documented(spec).__doc__ or "").partition("\n>>> ")
    first, *rest = text.strip().split("\n")
    found: dict[str, list[str]] = {"": [first]}
    label = ""
    for line in rest:
        match = re.match(r"([A-Z][A-Za-z ]{1,30}): ?(.*)", line)
        if match is not None and not line.startswith(" "):
            label = match[1]
            found[label] = [match[2]]
        else:
            found[label].append(line)
    parts = {key: "\n".join(lines).strip() for key, lines in found.items()}
    if example:
        parts["Example"] = f">>> {example}"
    return parts


def as_markdown(text: str) -> str:
    """Return plain text so that Markdown shows it as it is; what stands in backquotes is left alone."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([*_\[\]<>$|#])", r"\\\1", piece) for piece in pieces)


def certificate() -> dict[str, list[dict[str, Any]]]:
    """Return the claims of the last certificate by row."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    if CERTIFICATE.exists():
        for claim in json.loads(CERTIFICATE.read_text("utf-8")):
            by_row.setdefault(claim["name"].partition(":")[0], []).append(claim)
    return by_row


def page(name: str, *, note: str, values: Callable[[Any], str]) -> str:
    """Return the page of one objective; `values` says in words what a setting admits."""
    spec = OBJECTIVES[name]
    parts = sections(spec)
    lines = [note, "", f"# {name}", "", as_markdown(parts.pop("")), ""]
    lines += ["| family | reads | reference | level | proof |", "|---|---|---|---|---|"]
    needs = ", ".join(need.value.replace("_", " ") for need in sorted(spec.needs, key=lambda n: n.value))
    lines.append(
        f"| {spec.family.replace('_', ' ')} | {needs or 'any responses'} | {_reference(spec)} "
        f"| {spec.level} | {spec.proof} |"
    )
    example = parts.pop("Example", "")
    for label, text in parts.items():
        text = text[:1].upper() + text[1:] if label in ("Use", "Limits", "Optimum") else text
        shown = ["```text", text, "```"] if label == "Formula" else [as_markdown(text)]
        lines += ["", f"## {TITLES.get(label, label)}", "", *shown]
        if label == "Formula":
            lines += ["", f"Implicit reward: {as_markdown(spec.implicit_reward)}.", "", _notation(spec)]
    lines += ["", "## Defaults", ""]
    settings = spec.settings()
    if settings:
        lines += ["| setting | values | default |", "|---|---|---|"]
        for key, parameter in settings.items():
            lines.append(f"| `objective.{key}` | {values(parameter.annotation)} | `{parameter.default}` |")
    else:
        lines.append("It has no settings of its own.")
    lines += ["", *_logic(name), "## Certificate", ""]
    lines.append(f"`accord verify` proves it on any machine: {PROOFS[spec.proof]}.")
    lines += ["", *_claims(name)]
    if example:
        lines += ["", "## By hand", "", "```pycon", example, "```"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _notation(spec: ObjectiveSpec) -> str:
    if Need.ADVANTAGES not in spec.needs:
        return as_markdown(NOTATION)
    before, link, after = OF_ROLLOUTS.partition("[online")
    return as_markdown(before) + link + after


def _reference(spec: ObjectiveSpec) -> str:
    return "yes" if spec.reference else f"with `{spec.reference_when}`" if spec.reference_when else "no"


def _logic(name: str) -> Iterator[str]:
    form = form_of(name)
    if form is not None:
        yield from ("## As logic", "")
        yield f"P = `{form['formula']}`, given `{form['condition']}`, both sides `{form['both']}`;"
        yield f"link: {form['link']}. `accord methods {name} --logic` shows the truth table. {form['remark']}".rstrip()
        yield ""


def _claims(name: str) -> Iterator[str]:
    claims = certificate().get(name, [])
    if not claims:
        yield "No certificate has been written yet: `accord verify --json > docs/certificate.json`."
        return
    yield "| claim | tolerance | holds |"
    yield "|---|--:|---|"
    for claim in claims:
        text = as_markdown(claim["name"].partition(": ")[2])
        yield f"| {text} | {claim['tolerance']:g} | {'yes' if claim['passed'] else 'NO'} |"
