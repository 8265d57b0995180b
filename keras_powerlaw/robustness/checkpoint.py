"""The file from which an interrupted evaluation resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_powerlaw.arguments import invalid_value, validate_optional_path
from keras_powerlaw.progress import write_atomically
from keras_powerlaw.robustness.identity import (
    digest,
    outputs_of,
    same_outputs,
    structure_of,
    weights_of,
)
from keras_powerlaw.robustness.problem import Problem
from keras_powerlaw.robustness.report import from_bits, to_state
from keras_powerlaw.robustness.results import Results

# Entries that a file may lack.
ADDED = ("structure", "outputs")


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
        self._file = validate_optional_path("checkpoint", path)
        file = self._file
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise invalid_value(
                "checkpoint", "the path of a file in a folder that exists", file
            )
        self._epsilons = epsilons
        self._settings = problem.settings
        if path is not None:
            # A file with the same entries belongs to this evaluation.
            self._identity = {
                "epsilons": list(epsilons),
                "attacks": list(names),
                **problem.settings.reported(),
                "x": digest([problem.images]),
                "y": digest([problem.labels]),
                "model": weights_of(problem.classifier.model),
                "structure": structure_of(problem.classifier.model),
                "outputs": outputs_of(problem),
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
            differing = self._differing(state["evaluation"])
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

    def _differing(self, evaluation: Mapping[str, Any]) -> list[str]:
        """The entries in which the file's evaluation is not this one."""
        # Files of before identify a model by its weights alone.
        theirs = {**{key: self._identity[key] for key in ADDED}, **evaluation}
        differing = [
            key
            for key, ours in self._identity.items()
            if key != "outputs" and theirs[key] != ours
        ]
        # Those of other images or weights differ in any case.
        if differing or same_outputs(theirs["outputs"], self._identity["outputs"]):
            return differing
        return ["outputs"]

    def write(self, results: Results) -> None:
        if self._file is None:
            return
        report = results.report(self._epsilons, self._settings)
        text = json.dumps({**to_state(report), "evaluation": self._identity})
        write_atomically(self._file, lambda file: file.write(text.encode("utf-8")))
