"""The file from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_powerlaw.arguments import invalid_value, validate_optional_path
from keras_powerlaw.progress import write_atomically
from keras_powerlaw.robustness.attacks.attack import Batch
from keras_powerlaw.robustness.classifier import Classifier
from keras_powerlaw.robustness.report import RobustnessReport, report_of, to_state

# Number of images whose logits are part of a model's identity.
PROBES = 8

# Logits of one model on two machines differ by at most this share of their spread.
ROUNDING = 1e-2


def validate_checkpoint(path: Any) -> Path | None:
    file = validate_optional_path("checkpoint", path)
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise invalid_value(
            "checkpoint", "the path of a file in a folder that exists", file
        )
    return file


class Checkpoint:
    """A JSON file of results, which `RobustnessReport.from_json` reads once complete.

    Args:
        file: Path of the file, or None to read and write nothing.
        epsilons: The attack strengths.
        attacks: Names of the attacks.
        settings: The options that affect the results.
        classifier: The attacked model.
        data: Its images and labels.
    """

    def __init__(
        self,
        file: Path | None,
        epsilons: list[float],
        attacks: list[str],
        settings: dict[str, Any],
        classifier: Classifier,
        data: Batch,
    ) -> None:
        self._file = file
        if file is not None:
            # A file with the same entries belongs to this evaluation.
            self._evaluation = {
                "epsilons": epsilons,
                "attacks": attacks,
                **settings,
                "x": _digest([data.images]),
                "y": _digest([data.labels]),
                "model": _digest(
                    ops.convert_to_numpy(ops.convert_to_tensor(weight))
                    for weight in classifier.model.weights
                ),
                "outputs": _outputs(classifier, data.images[:PROBES]),
            }

    def read(self) -> RobustnessReport | None:
        """The results in the file, or None if there is no file.

        Raises:
            ValueError: If the file belongs to another evaluation or is no checkpoint.
        """
        if self._file is None or not self._file.exists():
            return None
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
            theirs, report = state["evaluation"], report_of(state)
            differing = [
                name
                for name, ours in self._evaluation.items()
                if name != "outputs" and theirs[name] != ours
            ]
            # Those of other images or weights differ in any case.
            if not differing and not _agree(
                theirs["outputs"], self._evaluation["outputs"]
            ):
                differing = ["outputs"]
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
        return report

    def write(self, report: RobustnessReport) -> None:
        if self._file is None:
            return
        text = json.dumps({**to_state(report), "evaluation": self._evaluation})
        write_atomically(self._file, lambda file: file.write(text.encode("utf-8")))


def _outputs(classifier: Classifier, images: NDArray[np.float32]) -> Any:
    """The logits of some images, or None if two calls differ.

    They show what no weight does: an attribute, the code of a layer.
    """
    first, second = (
        ops.convert_to_numpy(classifier(images)).tolist() for _ in range(2)
    )
    return first if _agree(first, second) else None


def _agree(first: Any, second: Any) -> bool:
    """Whether two results of `_outputs()` are of one model."""
    if first is None or second is None:
        return first is second
    ours, theirs = np.array(first), np.array(second)
    return ours.shape == theirs.shape and bool(
        np.abs(ours - theirs).max() <= ROUNDING * max(ours.std(), 1e-30)
    )


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        # As bytes, since bfloat16 does not support the buffer protocol.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
