"""What every test may ask for: a server, and a run of its own."""

import re
from collections.abc import Iterator

import pytest
from native import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run of the test's own."""
    return re.sub(r"[^a-z0-9._-]", "-", str(request.node.name).lower())
