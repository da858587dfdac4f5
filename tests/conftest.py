from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    """Tests do not see the user's own data folder."""
    monkeypatch.delenv("DBSN_DATA", raising=False)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def real_data(name: str) -> Path:
    """A folder of real test images under $DBSN_TEST_DATA or ../shared/data; the test is skipped where it is absent."""
    root = Path(os.environ.get("DBSN_TEST_DATA", SHARED))
    if not (root / name).is_dir():
        pytest.skip(f"the image set {name} is not at {root}")
    return root
