"""What every test may ask for: a server, and a run of its own. Without torch, the tests that need it are skipped by name."""

import ast
import importlib.util
import pathlib
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


class WithoutTorch(pytest.File):
    """A file of tests that can't even be imported without torch."""

    def collect(self) -> Iterator[pytest.Item]:
        for statement in ast.parse(self.path.read_text()).body:
            if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test_"):
                yield SkippedTest.from_parent(self, name=statement.name)


class SkippedTest(pytest.Item):
    def runtest(self) -> None:
        pytest.skip(f"{self.path.name}::{self.name} needs torch")


def pytest_pycollect_makemodule(module_path: pathlib.Path, parent: pytest.Collector) -> pytest.File | None:
    needs_torch = re.search(r"^(import|from) (torch|states|ranks|dcp_ranks)\b", module_path.read_text(), re.M)
    if needs_torch and importlib.util.find_spec("torch") is None:
        return WithoutTorch.from_parent(parent, path=module_path)
    return None  # as usual
