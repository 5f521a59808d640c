"""Fixtures that several test modules need."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from support_mqtt import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests log text that is no UTF-8 on purpose; a worker can only hand on what is."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of the test's own, open to anonymous clients, ended with the test."""
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def topic_prefix() -> str:
    """The first level of this test's topics."""
    return f"test-{uuid.uuid4().hex[:8]}"
