"""The scripts in examples/ as modules."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(request):
    """The example that the test file is named after."""
    path = EXAMPLES / f"{request.path.stem.removeprefix('test_')}.py"
    if not path.is_file():
        pytest.skip("the examples are part of the repository, not of the package")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
