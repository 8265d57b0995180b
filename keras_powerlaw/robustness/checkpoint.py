"""The file from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.robustness.problem import Problem
from keras_powerlaw.robustness.report import from_bits, to_state
from keras_powerlaw.robustness.results import Results
from keras_powerlaw.support.arguments import invalid_value
from keras_powerlaw.support.files import write_atomically


class Checkpoint:
    """A JSON file of results, which `RobustnessReport.from_json` reads once complete.

    Args:
        path: Path of the file, or None to read and write nothing.
        problem: Model, images and settings of the evaluation.
        epsilons: The attack strengths.
        names: Names of the attacks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        problem: Problem,
        epsilons: Sequence[float],
        names: Sequence[str],
    ) -> None:
        self._file = None if path is None else pathlib.Path(path)
        self._epsilons = epsilons
        self._settings = problem.settings
        if path is not None:
            # A file with the same entries belongs to this evaluation.
            self._identity = {
                "epsilons": list(epsilons),
                "attacks": list(names),
                **problem.settings.reported(),
                "x": _digest([problem.images]),
                "y": _digest([problem.labels]),
                "model": _digest(
                    ops.convert_to_numpy(ops.convert_to_tensor(weight))
                    for weight in problem.model.weights
                ),
            }

    def read(self) -> Results | None:
        """The results in the file, or None if there is no file.

        Raises:
            ValueError: If the file belongs to another evaluation or is no checkpoint.
        """
        if self._file is None or not self._file.exists():
            return None
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
            evaluation = state["evaluation"]
            differing = [
                key for key in self._identity if evaluation[key] != self._identity[key]
            ]
            results = Results(state["correct"])
            results.clean = from_bits(state["clean_correct"])
            for name, rows in state["correct"].items():
                results.correct[name] = [from_bits(row) for row in rows]
            for name, rows in state.get("draw_accuracy", {}).items():
                results.draw_accuracy[name] = np.array(rows).T.tolist()
            results.checks = state.get("checks", {})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise invalid_value(
                "checkpoint", "the path of a checkpoint, or a new one", self._file
            ) from error
        if differing:
            raise invalid_value(
                "checkpoint",
                f"a checkpoint of the same evaluation; {differing} differ",
                self._file,
            )
        return results

    def write(self, results: Results) -> None:
        if self._file is None:
            return
        report = results.report(self._epsilons, self._settings)
        text = json.dumps({**to_state(report), "evaluation": self._identity})
        write_atomically(self._file, lambda file: file.write(text.encode("utf-8")))


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        # As bytes, since bfloat16 does not support the buffer protocol.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
