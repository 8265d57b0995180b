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


def identity(classifier: Classifier, data: Batch) -> dict[str, Any]:
    """What tells a model and its data from others, besides the settings."""
    return {
        "x": _digest([data.images]),
        "y": _digest([data.labels]),
        "model": _digest(
            ops.convert_to_numpy(ops.convert_to_tensor(weight))
            for weight in classifier.model.weights
        ),
        "outputs": _outputs(classifier, data.images[:PROBES]),
    }


def read_checkpoint(
    file: Path | None, evaluation: dict[str, Any]
) -> RobustnessReport | None:
    """The results in a JSON file, or None if there is no file.

    Args:
        file: Path of the file, which `RobustnessReport.from_json` reads once complete,
            or None.
        evaluation: The strengths, attacks, settings and `identity()` of this one. A
            file with the same entries belongs to it.

    Raises:
        ValueError: If the file belongs to another evaluation or is no checkpoint.
    """
    if file is None or not file.exists():
        return None
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        theirs, report = state["evaluation"], report_of(state)
        differing = [
            name
            for name, ours in evaluation.items()
            if name != "outputs" and theirs[name] != ours
        ]
        # Those of other images or weights differ in any case; version 0.1 had none.
        outputs = evaluation["outputs"]
        if not differing and not _agree(theirs.get("outputs", outputs), outputs):
            differing = ["outputs"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = "the path of a checkpoint, or a new one"
        raise invalid_value("checkpoint", expected, file) from error
    if differing:
        expected = f"a checkpoint of the same evaluation; {differing} differ"
        raise invalid_value("checkpoint", expected, file)
    return report


def write_checkpoint(
    file: Path | None, evaluation: dict[str, Any], report: RobustnessReport
) -> None:
    """Writes the results as JSON text, with the evaluation that they belong to."""
    if file is None:
        return
    text = json.dumps({**to_state(report), "evaluation": evaluation})
    write_atomically(file, lambda opened: opened.write(text.encode("utf-8")))


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
