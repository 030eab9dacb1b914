"""What the tests share: where things are, and the models that they run on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"

NO_SHARED = pytest.mark.skip(reason=f"the shared models are not here: {SHARED / 'models'}")


def _real_models() -> list[Path]:
    return sorted((SHARED / "models" / "real").glob("*.onnx"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `real_model` runs once for each trained model that was collected."""
    if "real_model" in metafunc.fixturenames:
        paths = _real_models() or [pytest.param(None, marks=NO_SHARED)]
        metafunc.parametrize("real_model", paths, ids=lambda path: path.stem if path else "none")


@pytest.fixture(scope="session")
def real_models() -> list[Path]:
    """The trained models that were collected."""
    return _real_models() or pytest.skip(NO_SHARED.kwargs["reason"])


@pytest.fixture(scope="session")
def hydrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the file of an exported architecture by name, its weights filled in."""
    script = SHARED / "models" / "hydrate.py"
    folder = tmp_path_factory.mktemp("hydrated")

    def fill(name: str) -> Path:
        if not script.exists():
            pytest.skip(NO_SHARED.kwargs["reason"])
        spec = importlib.util.spec_from_file_location("hydrate", script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        path = folder / f"{name}.onnx"
        if not path.exists():
            module.hydrate_file(str(script.parent / "architectures" / path.name), str(path))
        return path

    return fill


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained model in a folder of its own."""
    path = tmp_path / "m.onnx"
    path.write_bytes((REPO / "sample_models" / "digits_cnn.onnx").read_bytes())
    return path
