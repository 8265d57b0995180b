"""Training that is killed and goes on ends where training in one go ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "interrupted.py"


def train(directory, refresh, kill_at=None):
    """Runs the script, and returns its exit code."""
    directory.mkdir(exist_ok=True)
    arguments = [sys.executable, SCRIPT, directory, json.dumps(refresh)]
    if kill_at is not None:
        arguments.append(str(kill_at))
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    if finished.returncode > 0:
        pytest.fail(finished.stderr)
    return finished.returncode


@pytest.mark.parametrize(
    "refresh",
    [
        {"x": None, "every_steps": 4},
        pytest.param({"every_epochs": 4}, marks=pytest.mark.slow),
        pytest.param({"every_steps": 7, "max_samples": 60}, marks=pytest.mark.slow),
    ],
    ids=["training batches", "every four epochs", "every seven steps, on a subset"],
)
def test_killed_in_the_middle_of_an_epoch(refresh, tmp_path):
    """Same weights, basis, whitening statistics and logs, to the last bit."""
    assert train(tmp_path / "one go", refresh) == 0

    # In the fourth epoch; none of the refreshes but the first falls on its start.
    assert train(tmp_path / "killed", refresh, kill_at=18) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.npz").exists()
    assert train(tmp_path / "killed", refresh) == 0

    expected, found = (
        np.load(tmp_path / name / "result.npz") for name in ("one go", "killed")
    )
    assert len(expected.files) == 10
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])
    expected, found = (
        (tmp_path / name / "log.csv").read_text() for name in ("one go", "killed")
    )
    assert found == expected
    assert not (tmp_path / "killed" / "backup").exists()
