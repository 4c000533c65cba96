"""Every field of every YAML in conf/ is a field of the schema, and the program reads it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

import kdx
from kdx.config.base import Settings
from kdx.config.compose import compose_config
from kdx.config.datasets import DATASETS
from kdx.config.groups import conf_folder, load_groups
from kdx.config.networks import MODELS
from kdx.config.schema import Config
from kdx.methods import PROCEDURES, build
from kdx.methods.method import MODIFIERS
from kdx.methods.modifier import Hyperparameter, Modifier
from kdx.reproduce.tables import table_names

PACKAGE = Path(kdx.__file__).parent
CHOICES = [(group.name, choice) for group in load_groups().values() for choice in group.choices]


@cache
def nodes_of_kdx() -> list[ast.AST]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    return [node for tree in trees for node in ast.walk(tree)]


def attributes_read() -> set[str]:
    """Every name that is read as an attribute anywhere in the package: `settings.epochs` reads `epochs`."""
    nodes = nodes_of_kdx()
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def is_hyperparameter(kind: type[BaseModel], name: str) -> bool:
    return bool({*map(id, kind.model_fields[name].metadata)} & {*map(id, Hyperparameter[float].__metadata__)})


def all_settings(kind: type[BaseModel] = Settings) -> Iterator[type[BaseModel]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("kdx."):
            yield below
            yield from all_settings(below)


def test_every_field_of_the_schema_is_read():
    for registry in (DATASETS, MODELS, MODIFIERS, PROCEDURES):
        for name in registry.names():
            registry.find(name, registry.group)
    fields = {
        (kind.__name__, name)
        for kind in all_settings()
        for name, field in kind.model_fields.items()
        # Of a field with a single value there is nothing to read.
        if len(get_args(field.annotation)) != 1 or get_origin(field.annotation) is not Literal
    }
    # A hyper-parameter is read by its name, from the tensors that a loss term is given.
    terms = {node.value for node in nodes_of_kdx() if isinstance(node, ast.Constant)}
    marked = {name for kind in all_settings(Modifier) for name in kind.model_fields if is_hyperparameter(kind, name)}
    read = attributes_read() | (terms & marked)
    assert len(fields) > 50
    assert {pair for pair in fields if pair[1] not in read} == set()


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_key_of_every_choice_is_in_the_schema(group: str, choice: str):
    """The schema forbids unknown keys, so what composes and validates has none; a method's belong to its parts."""
    # The student of chains exists with chains only; a further teacher must be another than the first.
    needed = ["method=ikd"] if choice == "refined" else ["teacher.seed=1"] if group in ("teacher2", "teacher3") else []
    config = compose_config([f"{group}={choice}", *needed])
    method, procedure = build(config.method)
    owned = {field for owner in (*method.modifiers, procedure) for field in type(owner).model_fields}
    assert config.method.keys() - {"name", "parts", "procedure"} <= owned
    assert Config.model_config.get("extra") == "forbid"


def test_every_yaml_is_a_choice_or_shared_by_choices():
    """A file that nothing composes would be read by nobody."""
    folder = conf_folder()
    groups = {}
    for group in load_groups().values():
        groups.setdefault(group.folder, set()).update(group.choices)
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.yaml")]
    for path in folder.rglob("*.yaml"):
        group, *rest = path.relative_to(folder).with_suffix("").parts
        if group == "suited":
            # Named by data set, method and trainer: tests/unit/test_suited.py.
            continue
        if group == "paper" and "/".join(rest) in table_names():
            continue
        if not rest or (group in groups and "/".join(rest) in groups[group]):
            continue
        names = ("/".join(rest), f"/{group}/{'/'.join(rest)}")
        assert any(re.search(rf"[-:] {name}(@|$)", text, re.MULTILINE) for text in texts for name in names), path
