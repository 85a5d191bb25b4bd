"""Where the front-left camera of Ford's vehicles sits, and its lens: `Calibration-V2`.

The calibration is YAML as ROS and OpenCV write it: nested keys with words, numbers and lists of
numbers. Exactly that much of YAML is read here, and anything else is an error.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ciper.errors import DatasetError

FloatArray = NDArray[np.float64]
Node: TypeAlias = "str | list[Node] | dict[str, Node]"

CALIBRATION_FOLDERS = ("Calibration-V2/V2", "Calibration-V2")
EXTRINSICS_NAMES = ("cameraFrontLeft_body.yaml",)
INTRINSICS_NAMES = ("cameraFrontLeftIntrinsics.yaml", "cameraFrontLeft_intrinsics.yaml")


@dataclass(frozen=True, eq=False)
class Rig:
    """The camera on its vehicle: X_body = body_from_camera X_camera + position_m.

    Attributes:
        body_from_camera: (3, 3) rotation; the camera's axes are right, down and forward, the body's
            forward, right and down.
        position_m: (3,) the camera in the body's frame.
        focal_px: of the photos as they are; None without intrinsics.
        principal_px: (u, v) from the photo's corner; None without intrinsics.
    """

    body_from_camera: FloatArray
    position_m: FloatArray
    focal_px: float | None = None
    principal_px: tuple[float, float] | None = None


def read_rig(root: Path) -> Rig:
    """The front-left camera's extrinsics and, where they are present, intrinsics.

    Raises:
        DatasetError: no extrinsics, or a file that cannot be understood.
    """
    path = _find(root, EXTRINSICS_NAMES)
    if path is None:
        raise DatasetError(
            f"{root / CALIBRATION_FOLDERS[0] / EXTRINSICS_NAMES[0]} is missing; expected where the "
            "camera sits on the vehicle: download Ford's Calibration-V2"
        )
    body_from_camera, position_m = _extrinsics(path)
    lens = _find(root, INTRINSICS_NAMES)
    if lens is None:
        return Rig(body_from_camera, position_m)
    focal_px, principal_px = _intrinsics(lens)
    return Rig(body_from_camera, position_m, focal_px, principal_px)


def rotations(quaternions: FloatArray) -> FloatArray:
    """Rotation matrices (N, 3, 3) of quaternions (N, 4) w, x, y, z of any length above zero.

    Rodrigues' formula: 1 + 2 w [v] + 2 [v][v], where [v] is the cross product with (x, y, z).
    """
    unit = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
    cross = np.zeros((len(unit), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = unit[:, 1:]
    cross[:, [1, 2, 0], [2, 0, 1]] = -unit[:, 1:]
    turned: FloatArray = np.eye(3) + 2.0 * (unit[:, :1, None] * cross + cross @ cross)
    return turned


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DatasetError: it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror}); expected a text file of the data set"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); download it again") from error


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    paths = (root / folder / name for folder in CALIBRATION_FOLDERS for name in names)
    return next((path for path in paths if path.is_file()), None)


# ------------------------------------------------------------------------------------ calibration


def _extrinsics(path: Path) -> tuple[FloatArray, FloatArray]:
    """Rotation and position: a quaternion or matrix with a translation, or one 4 x 4 matrix."""
    tree = parse_yaml(path)
    transform = tree.get("transform", tree)
    if not isinstance(transform, dict) or "data" in transform:
        matrix = _numbers(path, "transform", transform, 16).reshape(4, 4)
        if not np.allclose(matrix[3], (0.0, 0.0, 0.0, 1.0)):
            raise DatasetError(
                f"{path}: the transform's last row is not 0 0 0 1; is it transposed?"
            )
        return _checked_rotation(path, matrix[:3, :3]), matrix[:3, 3]
    position_m = _numbers(path, "translation", _named(path, transform, "translation", "T"), 3)
    turn = _named(path, transform, "rotation", "R")
    if isinstance(turn, dict) and "w" in turn:
        w, x, y, z = (_numbers(path, key, _named(path, turn, key), 1)[0] for key in "wxyz")
        quaternion = np.array([[w, x, y, z]])
        norm = float(np.linalg.norm(quaternion))
        if abs(norm - 1.0) > 0.01:
            raise DatasetError(f"{path}: the rotation's length is {norm:.4g}; expected 1")
        return rotations(quaternion)[0], position_m
    return _checked_rotation(path, _numbers(path, "rotation", turn, 9).reshape(3, 3)), position_m


def _checked_rotation(path: Path, matrix: FloatArray) -> FloatArray:
    is_orthonormal = np.allclose(matrix @ matrix.T, np.eye(3), atol=0.01)
    if not is_orthonormal or np.linalg.det(matrix) < 0.0:
        raise DatasetError(
            f"{path}: {matrix.tolist()} is no rotation; expected three orthonormal rows"
        )
    return matrix


def _intrinsics(path: Path) -> tuple[float, tuple[float, float]]:
    """Focal length and principal point of a 3 x 3 matrix K or of fx, fy, cx and cy."""
    tree = parse_yaml(path)
    if "fx" in tree:
        fx, fy, cx, cy = (
            float(_numbers(path, key, _named(path, tree, key), 1)[0])
            for key in ("fx", "fy", "cx", "cy")
        )
    else:
        matrix = _numbers(path, "K", _named(path, tree, "K", "camera_matrix"), 9).tolist()
        fx, _, cx, _, fy, cy = matrix[:6]
    if not (fx > 0.0 and abs(fy / fx - 1.0) <= 0.02):
        raise DatasetError(
            f"{path}: focal lengths {fx:g} and {fy:g} px; expected positive ones of square pixels"
        )
    # Calibrations count from the middle of the first pixel, photos here from its corner.
    return fx, (cx + 0.5, cy + 0.5)


def _named(path: Path, tree: dict[str, Node], *names: str) -> Node:
    for name in names:
        if name in tree:
            return tree[name]
    raise DatasetError(
        f"{path} has no {' or '.join(names)}; expected Ford's calibration, found "
        f"{', '.join(tree) or 'nothing'}"
    )


def _numbers(path: Path, name: str, node: Node, count: int) -> FloatArray:
    """A scalar, the axes x, y, z, a list, a list of rows or a matrix with data, as (count,)."""
    if isinstance(node, dict):
        node = node["data"] if "data" in node else [node[axis] for axis in "xyz" if axis in node]
    try:
        numbers = np.array(node, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: {name} is {node!r}; expected {count} numbers") from error
    if numbers.size != count or not np.isfinite(numbers).all():
        raise DatasetError(f"{path}: {name} is {node!r}; expected {count} finite numbers")
    return numbers


# ------------------------------------------------------------------------------------------- YAML


@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


def parse_yaml(path: Path) -> dict[str, Node]:
    """The keys of a calibration; all values are still text.

    Raises:
        DatasetError: the file is more than nested keys with words, numbers and lists.
    """
    lines = _logical_lines(path)
    if not lines:
        raise DatasetError(f"{path} is empty; expected Ford's calibration")
    tree = _mapping(path, lines, lines[0].indent)
    if lines:
        raise _not_understood(path, lines[0])
    return tree


def _logical_lines(path: Path) -> deque[_Line]:
    """Lines without comments and markers; brackets that span lines are one."""
    lines: deque[_Line] = deque()
    depth = 0
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        text = re.sub(r"(^|\s)#.*", "", raw).rstrip()
        is_marker = text == "..." or (not lines and (text == "---" or text.startswith("%YAML")))
        if not text or is_marker:
            continue
        line = _Line(number, len(text) - len(text.lstrip(" ")), text.strip(" "))
        if depth:
            opened = lines.pop()
            line = replace(opened, text=f"{opened.text} {line.text}")
        lines.append(line)
        depth = len(re.findall(r"[\[{]", line.text)) - len(re.findall(r"[\]}]", line.text))
    return lines


def _mapping(path: Path, lines: deque[_Line], indent: int) -> dict[str, Node]:
    tree: dict[str, Node] = {}
    while lines and lines[0].indent >= indent:
        line = lines.popleft()
        match = re.fullmatch(r"([\w./-]+):(?:\s+(.*))?", line.text)
        if line.indent != indent or match is None or match[1] in tree:
            raise _not_understood(path, line)
        tree[match[1]] = _value(path, lines, line, match[2] or "")
    return tree


def _value(path: Path, lines: deque[_Line], line: _Line, text: str) -> Node:
    if text not in ("", "!!opencv-matrix"):
        return _inline(path, line, text)
    if lines and lines[0].text.startswith("- ") and lines[0].indent >= line.indent:
        return _items(path, lines, lines[0].indent)
    if lines and lines[0].indent > line.indent:
        return _mapping(path, lines, lines[0].indent)
    return ""


def _items(path: Path, lines: deque[_Line], indent: int) -> list[Node]:
    items: list[Node] = []
    while lines and lines[0].indent == indent and lines[0].text.startswith("- "):
        line = lines.popleft()
        items.append(_inline(path, line, line.text[2:].strip()))
    return items


def _inline(path: Path, line: _Line, text: str) -> Node:
    """A word, a number, or brackets of them, which become JSON once their words are quoted."""
    if text[0] not in "[{":
        if text[0] in "&*!|>@`%" or "\t" in text:
            raise _not_understood(path, line)
        return text.strip("\"'")
    quoted = re.sub(r"[^\[\]{},:\s]+", lambda word: json.dumps(word[0].strip("\"'")), text)
    try:
        node: Node = json.loads(quoted)
    except json.JSONDecodeError as error:
        raise _not_understood(path, line) from error
    return node


def _not_understood(path: Path, line: _Line) -> DatasetError:
    return DatasetError(
        f"{path} line {line.number}: {line.text[:60]!r} is not understood; expected nested keys "
        "with words, numbers and lists of numbers, as ROS and OpenCV write them"
    )
