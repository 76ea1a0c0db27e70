"""Directions found elsewhere as features: steering vectors, probe weights, the difference of two means.

Every direction v gives the activation <v, x - c> / |v| + b / |v|, in units of the stream; like every signed value it is
held as two features, its positive and its negative part. The decoder row is v / |v|, so ablating both parts takes the
direction out of the stream, and a dose adds that many units along it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from neurosae.dictionary.kinds import Dictionary, signed_dictionary
from neurosae.errors import ModelError
from neurosae.spec.files import content_hash

TABLE = "vectors"  # array that is read where a file holds several
BESIDE = ("bias", "center", "names")


def vector_dictionary(
    vectors: Any,
    *,
    hook: str = "",
    bias: Any = None,
    center: Any = None,
    names: Sequence[str] = (),
    device: str = "cpu",
) -> Dictionary:
    """Directions as a dictionary, so that they enter every analysis like learned features.

    Parameters
    ----------
    vectors : array of shape (n, d) or (d,), in the space of the hook point; their lengths do not matter
    hook : hook point that they belong to
    bias : array (n,), e.g. the intercepts of probes in the units of `vectors`; none without
    center : array (d,) that is subtracted first, e.g. the mean that a probe was trained on; none without
    names : what the directions are called
    device : where the dictionary lies

    Returns
    -------
    Dictionary
        Feature j is max(a_j, 0), feature n + j is max(-a_j, 0), with a_j = (<v_j, x - c> + b_j) / |v_j|.

    Raises
    ------
    ModelError
        A vector of length 0 or with values that are not finite, or parts that do not fit together.

    Examples
    --------
    >>> probe = vector_dictionary([[0.0, 2.0]], bias=[-2.0], names=["plural"])
    >>> probe.encode(torch.tensor([[9.0, 3.0], [9.0, 0.0]])).toarray().tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    V = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    n, d = V.shape if V.ndim == 2 else (0, 0)
    b = np.zeros(n) if bias is None else np.atleast_1d(np.asarray(bias, dtype=np.float64))
    c = np.zeros(d) if center is None else np.asarray(center, dtype=np.float64).ravel()
    if not n or not d:
        raise ModelError(f"vectors have shape {V.shape}; give (n, width of the hook point).")
    if b.shape != (n,) or c.shape != (d,) or (len(names) and len(names) != n):
        raise ModelError(
            f"vectors have shape {V.shape}, but bias {b.shape}, center {c.shape} and {len(names)} names; "
            f"give bias ({n},), center ({d},) and {n} names."
        )
    length = np.sqrt((V**2).sum(axis=1))
    if not np.isfinite([*V.ravel(), *b, *c]).all() or not length.all():
        wrong = int(np.flatnonzero(~np.isfinite(V).all(axis=1) | (length == 0))[:1].sum())
        raise ModelError(f"vector {wrong} has length 0 or values that are not finite; it points nowhere.")
    unit, offset = (torch.as_tensor(a, dtype=torch.float32, device=device) for a in (V / length[:, None], b / length))
    facts = {"fitted": "vectors", "directions": [str(name) for name in names] or [f"vector {j}" for j in range(n)]}
    digest = content_hash("vectors", V.tobytes(), b.tobytes(), c.tobytes(), list(V.shape))
    card = {"decomposition": f"{n} direction{'s' if n > 1 else ''} found elsewhere, two signs each", **facts}
    at = torch.as_tensor(c, dtype=torch.float32, device=device)
    made = signed_dictionary(hook, unit, unit, center=at, digest=digest, card=card)
    return replace(made, b_enc=torch.cat([offset, -offset]), metadata={**made.metadata, **facts})


def read_vectors(path: str | Path, *, hook: str = "", device: str = "cpu") -> Dictionary:
    r"""Read directions from a file.

    Parameters
    ----------
    path : `.csv`, one direction a row, a name before its numbers if you like; `.npy`; `.npz` or `.safetensors`, with
        the array `vectors` (or one array of any name) and, if need be, `bias` and `center`
    hook : hook point that they belong to
    device : where the dictionary lies

    Raises
    ------
    ModelError
        In one sentence: no such file, another ending, rows of different lengths, what is no number.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "probe.csv"
    ...     _ = file.write_text("plural,0.0,3.0\nsingular,1.0,0.0\n")
    ...     read_vectors(file).metadata["directions"]
    ['plural', 'singular']
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"file of vectors {path} does not exist; give a .csv, .npy, .npz or .safetensors file.")
    readers = {".csv": _from_csv, ".npy": _from_array, ".npz": _from_arrays, ".safetensors": _from_arrays}
    if path.suffix not in readers:
        raise ModelError(f"{path}: vectors are read from .csv, .npy, .npz or .safetensors, not '{path.suffix}'.")
    try:
        parts = readers[path.suffix](path)
        return vector_dictionary(parts.pop(TABLE), hook=hook, device=device, **parts)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except Exception as error:  # numpy's, zipfile's or that of the Rust side, for a damaged file
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as vectors ({said[:160]}); write it again.") from error


def _from_csv(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if rows and not any(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]  # a line of column names
    if not rows:
        raise ModelError("holds no vector; write one a line, its numbers separated by commas.")
    named = not _is_number(rows[0][0])
    values = [row[1:] if named else row for row in rows]
    for number, row in enumerate(values, 1):
        if len(row) != len(values[0]):
            raise ModelError(f"vector {number} has {len(row)} numbers, but the first one has {len(values[0])}.")
        if wrong := [cell for cell in row if not _is_number(cell)]:
            raise ModelError(f"vector {number}: '{wrong[0][:40]}' is no number.")
    table = np.array([[float(cell) for cell in row] for row in values])
    return {TABLE: table, "names": [row[0].strip() for row in rows] if named else []}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_array(path: Path) -> dict[str, Any]:
    return {TABLE: np.load(path, allow_pickle=False)}


def _from_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found: Mapping[str, np.ndarray] = {name: file[name] for name in file.files}
    else:
        found = safetensors.numpy.load(path.read_bytes())
    tables = [name for name in found if name not in BESIDE]
    if TABLE not in found and len(tables) != 1:
        raise ModelError(f"holds {', '.join(found) or 'nothing'}; call the directions '{TABLE}'.")
    parts: dict[str, Any] = {name: found[name] for name in BESIDE if name in found}
    if "names" in parts:
        parts["names"] = [str(name) for name in np.atleast_1d(parts["names"])]
    return {TABLE: found[TABLE if TABLE in found else tables[0]], **parts}
