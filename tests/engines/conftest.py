"""The starter model, loaded once for all tests of the embedded engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from setpoint.engines.llamacpp.chat import ChatTemplate
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.starter import resolve_model


@pytest.fixture(scope="session")
def starter_path() -> Path:
    return resolve_model()


@pytest.fixture(scope="session")
def model(starter_path: Path) -> Iterator[Model]:
    with Model(starter_path) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def chat(model: Model) -> ChatTemplate:
    return ChatTemplate(model)
