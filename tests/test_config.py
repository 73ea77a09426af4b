"""Settings: what is unknown or has no effect is refused, what is written down is what runs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_runs import BASE, labelled_groups, metrics_of, run, write_pairs

from accord.config import (
    AlignConfig,
    ObjectiveConfig,
    Section,
    build_config,
    flatten,
    parse_assignment,
    read_recipe,
    valid_keys,
)
from accord.errors import ConfigError
from accord.objectives import OBJECTIVES
from accord.objectives.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if "method" not in read_recipe(path)]
HERE = {"model": "m", "data": "d"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train.learning_rate", "train."), ("train.lrr", "train.lr"), ("trian.lr", "train.lr"), ("lr", "train.lr"),
        ("modle.path", "model.path"), ("data.pth", "data.path"), ("reference.pth", "reference.path"),
        ("model.lora_rnk", "model.lora_rank"), ("evaluate.patiens", "evaluate.patience"),
        ("objective.bta", "objective.beta"), ("beta", "objective.beta"), ("epochs", "train.epochs"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(given: str, meant: str):
    with pytest.raises(ConfigError, match=f"unknown setting {given}") as caught:
        build_config(HERE | {given: 1})
    hint = str(caught.value).partition(" — ")[2]
    assert hint.startswith((f"did you mean {meant}", "valid ones are"))
    assert meant in hint


@pytest.mark.parametrize("key", valid_keys())
def test_every_key_is_refused_with_a_letter_too_many(key: str):
    with pytest.raises(ConfigError, match=f"did you mean {key}"):
        build_config(HERE | {f"{key}x" if "." in key else f"{key}tt": 1})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective": "dpoo"}, "did you mean dpo"),
        ({"objective": "ipo", "objective.beta": 0.1}, "ipo does not use it.*dpo"),
        ({"objective.beta": -1}, "objective.beta"),
        ({"objective.beta": "much"}, "objective.beta='much'"),
        ({"train.lr": 0}, "train.lr=0"),
        ({"train.batch_size": 2.5}, "train.batch_size=2.5"),
        ({"train.schedule": "wavy"}, "'constant', 'linear' or 'cosine'"),
        ({"evaluate.patience": 2}, "evaluate.every is not"),
        ({"model.lora_alpha": 8}, "model.lora_rank is not"),
        ({"model.lora_targets": "q_proj"}, "model.lora_rank is not"),
        ({"data.eval_path": "e", "data.eval_fraction": 0.2}, "only one of them"),
        ({"train": 5, "train.lr": 1e-3}, "expected one of them"),
        ({"train": 5}, "got train=5"),
        ({"train.adam_beta1": 1}, "train.adam_beta1=1"),
        ({"train.adam_beta2": 1.0}, "train.adam_beta2=1.0"),
        ({"train.seed": -1}, "train.seed=-1"),
        ({"evaluate.num_samples": 0, "evaluate.sample_tokens": 9}, "nothing is sampled"),
        ({"evaluate.num_samples": 0, "objective": "simpo", "reference": "r"}, "simpo has no reference"),
        ({"model.precision": "bfloat16"}, r"model\.precision=mixed.*lora_rank"),
        ({"data": None}, "data.path"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        build_config(HERE | settings)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"model\.path is missing.*--model.*data\.path is missing.*--data"):
        build_config({})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("1E5", 1e5), ("0.1", 0.1), ("3", 3), ("null", None), ("true", True), ("false", False),
        ("[1, b]", [1, "b"]), ("a=b", "a=b"), ("it's: a: mess", "it's: a: mess"), ("", None), ("dpo", "dpo"),
        ("runs/e1", "runs/e1"), ("'1e3'", "1e3"),
    ],
)  # fmt: skip
def test_values_of_the_command_line(text: str, value: object):
    key, found = parse_assignment(f"some.key={text}")
    assert (key, found, type(found)) == ("some.key", value, type(value))


@pytest.mark.parametrize("text", ["train.lr", "=3"])
def test_what_is_no_assignment(text: str):
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignment(text)


def test_the_resolved_settings_build_the_same_settings():
    config = build_config(HERE | {"objective": "kto", "objective.beta": "2e-1", "train.lr": "1e-5", "train.epochs": 3})
    assert config.train.lr == 1e-5
    assert config.objective.settings == OBJECTIVES["kto"].defaults() | {"beta": 0.2}
    again = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    assert build_config(again) == config


SUM = {"objective.name": "sum"}


def test_the_parts_of_a_sum_are_filled_in_and_written_back():
    config = build_config(HERE | SUM | {"objective.parts.dpo.beta": "2e-1", "objective.parts.sft.weight": 0.2})
    parts = {
        "dpo": {"weight": 1.0} | OBJECTIVES["dpo"].defaults() | {"beta": 0.2},
        "sft": {"weight": 0.2} | OBJECTIVES["sft"].defaults(),
    }
    assert config.objective.settings == {"parts": parts}
    assert list(config.objective.settings["parts"]) == ["dpo", "sft"]  # the first says the implicit reward
    again = yaml.safe_load(yaml.safe_dump(config.to_dict(), sort_keys=False))
    assert build_config(again) == config
    nested = {"objective": {"name": "sum", "parts": {"dpo": {"beta": 0.2}, "sft": {"weight": 0.2}}}}
    assert build_config(HERE | nested) == config


@pytest.mark.parametrize("bare", [{}, None])
def test_a_part_of_a_sum_without_settings_is_not_lost(bare: object):
    config = build_config(HERE | {"objective": {"name": "sum", "parts": {"dpo": bare, "sft": {"weight": 0.2}}}})
    assert config.objective.settings["parts"]["dpo"] == {"weight": 1.0} | OBJECTIVES["dpo"].defaults()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SUM, "no part"),
        (SUM | {"objective.parts": 3}, "expected only parts"),
        (SUM | {"objective.parts.dpo": 3}, "objective.parts.dpo=3"),
        (SUM | {"objective.beta": 0.1, "objective.parts.dpo.beta": 0.1}, "objective.beta.*expected only parts"),
        (SUM | {"objective.parts.dpoo.beta": 0.1}, "objective.parts.dpoo — did you mean dpo"),
        (SUM | {"objective.parts.sum.weight": 1}, "objective.parts.sum"),
        (SUM | {"objective.parts.dpo.bta": 0.1}, r"did you mean objective\.parts\.dpo\.beta"),
        (SUM | {"objective.parts.ipo.beta": 0.1}, r"setting objective\.parts\.ipo\.beta.*ipo does not use it.*dpo"),
        (SUM | {"objective.parts.dpo.weight": 0}, r"objective\.parts\.dpo\.weight=0"),
        (SUM | {"objective.parts.dpo.beta": -1}, r"objective\.parts\.dpo\.beta=-1"),
        ({"objective": "dpo", "objective.parts.sft.weight": 1}, "objective.parts.*sum has parts"),
        ({"objective": "summ"}, "did you mean sum"),
        ({"objective": "bco", "objective.min_density": 0.1}, "density_weights is not"),
        ({"objective": "rpo_relative", "objective.own_weight": 0.1}, "only weighting=diagonal reads it"),
    ],
)  # fmt: skip
def test_a_sum_that_cannot_be_meant_is_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        build_config(HERE | settings)


# -- nothing is written down in vain -----------------------------------------------------------------------------------


def test_every_setting_is_read_somewhere():
    """Each field of each section appears as an attribute in another module of the package."""
    read: set[str] = set()
    for path in (ROOT / "accord").rglob("*.py"):
        if path.parent.name != "config":
            nodes = ast.walk(ast.parse(path.read_text()))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    for section in (*Section.__subclasses__(), ObjectiveConfig):
        for name in section.model_fields:
            assert name in read, f"{section.__name__}.{name} is a setting that nothing reads"
    sections = [field.annotation for field in AlignConfig.model_fields.values()]
    assert {kind for kind in sections if isinstance(kind, type) and issubclass(kind, Section)} < {
        *Section.__subclasses__()
    }


def test_every_family_of_objectives_has_a_recipe():
    recipes = [read_recipe(path) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
    named = {METHODS[r["method"]].objective if "method" in r else r["objective"]["name"] for r in recipes}
    assert {OBJECTIVES[name].family for name in named & set(OBJECTIVES)} == {row.family for row in OBJECTIVES.values()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path):
    """Two steps of each on the shipped model; only sizes that 16 rows cannot fill are replaced."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 40
    settings = dict(flatten(read_recipe(path))) | {"train.max_steps": 2, "train.epochs": 1, "evaluate.every": 1}
    data = labelled_groups() if settings["objective.name"] == "kto" else write_pairs(tmp_path)
    result = run(data, tmp_path / "out", model=str(BASE), **settings | {"train.batch_size": 4})
    assert len([line for line in metrics_of(result) if "loss" in line]) == 2
    assert result.run is not None
    kept = dict(flatten(result.run.read_config()))
    for key, value in settings.items():
        if key != "train.batch_size":
            assert kept[key] == value


def test_a_recipe_that_is_none(tmp_path: Path):
    for text, says in (("- a\n- b", "list"), ("a: [", "not YAML"), (None, "cannot be read")):
        path = tmp_path / "recipe.yaml"
        if text is None:
            path = tmp_path / "absent.yaml"
        else:
            path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_recipe(path)
