"""The menu itself: settings read off signatures, the table, examples in docstrings, a docs page per row."""

import doctest
import importlib
import inspect
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import annotated_types
import pytest
from pydantic import ConfigDict, ValidationError, create_model

from accord.objectives import OBJECTIVES, methods_table
from accord.objectives.pairwise.targets import ipo

DOCS = Path(__file__).parents[2] / "docs" / "objectives"
rows = pytest.mark.parametrize(("name", "spec"), OBJECTIVES.items(), ids=list(OBJECTIVES))


def documented(spec):
    """Return the function behind a row, which may be a variant of it."""
    return spec.fn.func if isinstance(spec.fn, partial) else spec.fn


@rows
def test_every_setting_has_a_default_and_every_number_a_bound(name, spec):
    for setting, parameter in spec.settings().items():
        assert parameter.default is not inspect.Parameter.empty, setting
        if isinstance(parameter.default, float):
            bounds = (annotated_types.Gt, annotated_types.Ge, annotated_types.Interval)
            assert any(isinstance(bound, bounds) for bound in parameter.annotation.__metadata__), setting


@rows
def test_the_only_positional_argument_is_groups(name, spec):
    parameters = inspect.signature(spec.fn).parameters.values()
    assert [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY] == ["groups"]


@rows
def test_a_settings_model_can_be_derived_from_the_signature(name, spec):
    fields = {key: (parameter.annotation, parameter.default) for key, parameter in spec.settings().items()}
    model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    assert model().model_dump() == spec.defaults()
    with pytest.raises(ValidationError):
        model(no_such_setting=1.0)


def test_bounds_reach_the_derived_model():
    parameter = OBJECTIVES["dpo"].settings()["label_smoothing"]
    model = create_model("dpo", label_smoothing=(parameter.annotation, parameter.default))
    assert model(label_smoothing=0.49).label_smoothing == 0.49
    for out_of_range in (-0.01, 0.5):
        with pytest.raises(ValidationError):
            model(label_smoothing=out_of_range)


def test_a_variant_is_one_line_and_does_not_offer_what_it_fixes():
    ipo_avg = replace(OBJECTIVES["ipo"], fn=partial(ipo, normalisation="mean"))
    assert list(ipo_avg.settings()) == ["tau"]
    assert ipo_avg.summary == OBJECTIVES["ipo"].summary


def test_the_table_is_plain_and_complete():
    table = methods_table()
    assert [row["name"] for row in table] == list(OBJECTIVES)
    keys = ("name", "family", "level", "needs", "reference", "paper", "defaults", "proof")
    assert {tuple(row) for row in table} == {keys}
    assert json.loads(json.dumps(table)) == table
    by_name = {row["name"]: row for row in table}
    assert by_name["dpo"]["defaults"] == {"beta": 0.1, "label_smoothing": 0.0}
    assert by_name["kto"]["needs"] == ["labels", "mismatched_kl"]
    assert not by_name["simpo"]["reference"]


@rows
def test_the_function_carries_its_name_a_summary_and_its_source(name, spec):
    assert spec.summary.endswith(".")
    documentation = inspect.getdoc(documented(spec)) or ""
    for part in ("Formula:", "Optimum:", "Limits:", "Source:", ">>> "):
        assert part in documentation, part
    arxiv_id = spec.paper.partition("arXiv:")[2][:10]
    assert arxiv_id in documentation


@pytest.mark.parametrize("module", sorted({documented(spec).__module__ for spec in OBJECTIVES.values()}))
def test_examples_in_docstrings_are_true(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


@rows
def test_every_row_has_a_page_that_names_its_settings_and_paper(name, spec):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert f"\n# {name}\n" in page
    for heading in ("## Formula", "## When to use", "## Defaults", "## Limits", "## Citation", "## Certificate"):
        assert heading in page, heading
    for setting, default in spec.defaults().items():
        assert re.search(rf"\| `objective.{setting}` \| .* \| `{re.escape(str(default))}` \|", page)
    claims = re.findall(r"\| (yes|NO) \|", page)
    assert len(claims) >= 2
    assert set(claims) == {"yes"}
    assert spec.paper.partition("arXiv:")[2][:10] in page


def test_no_page_without_a_row():
    assert {page.stem for page in DOCS.glob("*.md")} == set(OBJECTIVES)
