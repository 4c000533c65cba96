"""Tests by force and by chance; `--blows` says how much of it, and `--figures` keeps what came out."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kdx.device.machine import describe_machine

SEED = 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All of them are slow, and long ones have the time that they need."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if config.getoption("blows"):
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def chance() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def blows(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many blows: so few in the short form."""
    return lambda few: request.config.getoption("blows") or few


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Write down what a test did, and what went wrong, which fails it."""

    def keep(name: str, *, failures: list[str], **counted: object) -> None:
        path = request.config.getoption("figures")
        if path:
            kept = json.loads(path.read_text()) if path.exists() else {}
            kept |= {name: {"seed": SEED, **counted, "failures": failures}, "machine": describe_machine()}
            path.write_text(json.dumps(kept, indent=2) + "\n")
        assert failures == []

    return keep
