"""Real data beside the repository, for trying loaders on; it is not part of the project."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The file of this name; the test that asks for it is skipped where there is none."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"needs the data file {name}, which is not part of the project")
    return path
