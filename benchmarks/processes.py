"""Measurements in a process of their own, whose memory is then theirs alone."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def in_a_process(module, *options):
    """Runs `python -m module` and reads the last line that it prints, which is JSON.

    The process runs in the project's root, so paths among the options must be absolute.
    """
    command = [sys.executable, "-m", module, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])
