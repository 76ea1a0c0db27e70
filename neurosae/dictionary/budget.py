"""What a training run will take, said before it starts: memory, disk, and time from its first steps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from neurosae.dictionary.settings import Settings
from neurosae.errors import ModelError, StoreError
from neurosae.spec.files import require_space

FLOAT = 4
COPIES = 4  # of every parameter: weights, gradients, two moments of Adam
SMALL = 1e10  # multiplications of a step, forward and backward, for which one thread is the safe choice
BUSY = 1.5  # load, in processors, that other programs may make before two threads wait for each other
SPARSE_ROWS = 256  # rows whose pre-activations the sparse step holds at once
TIMED = 3, 8  # steps from whose end and to whose end the first ones are timed
DENSE_COPIES = 4  # of batch x d_sae that the training classes of sae-lens hold


class Budget(NamedTuple):
    """Bytes of memory and disk that one dictionary takes while it is trained."""

    memory: int
    disk: int


def budget(settings: Settings, d: int, *, device: str = "cpu") -> Budget:
    """Memory for parameters, gradients, moments and pre-activations; disk for checkpoint, result and cached rows.

    Examples
    --------
    >>> made = budget(Settings(d_sae=24_576, k=32, batch=2048), 768)
    >>> f"{made.memory / 1e9:.2f} GB, {made.disk / 1e9:.2f} GB"
    '0.66 GB, 0.60 GB'
    """
    parameters = FLOAT * settings.d_sae * (2 * d + 1)
    sparse = settings.architecture == "topk" and device == "cpu" and not settings.amp
    held = FLOAT * settings.d_sae * (SPARSE_ROWS if sparse else DENSE_COPIES * settings.batch)
    rows = FLOAT * settings.batch * (4 * d + 8 * settings.k)
    cached = {"": 0, "float32": 4, "bfloat16": 2}[settings.cache] * settings.n_tokens * d
    return Budget(COPIES * parameters + held + rows, COPIES * parameters + cached)


def require_budget(wanted: Sequence[tuple[Settings, int]], *, out: Path, device: str) -> Budget:
    """What dictionaries that are trained together take; refused, with what to change, if memory or disk are too small.

    Parameters
    ----------
    wanted : settings and width of each
    out : a folder on the disk that they are saved to
    device : where they are trained
    """
    each = [budget(settings, d, device=device) for settings, d in wanted]
    needed, free = Budget(sum(b.memory for b in each), sum(b.disk for b in each)), free_memory(device)
    settings, d = wanted[int(np.argmax([b.memory for b in each]))]
    what = f"d_sae {settings.d_sae:,} at width {d:,} in batches of {settings.batch:,}"
    what += f", and {len(wanted) - 1} more beside it," if len(wanted) > 1 else ""
    if free is not None and needed.memory > free:
        raise ModelError(
            f"{what} needs {words(needed.memory)} of memory for weights, gradients and Adam's moments, but "
            f"{words(free)} are free; use a smaller d_sae or batch."
        )
    try:
        require_space(out, needed.disk)
    except StoreError as error:
        remedy = "use a smaller d_sae" + (", bfloat16 or no cache" if settings.cache else "")
        raise StoreError(f"{error} {what} takes {words(needed.disk)} of disk: {remedy}.") from error
    return needed


def free_memory(device: str) -> int | None:
    """Free bytes of a device; None where nobody knows."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None


def threads_for(settings: Settings, d: int, *, device: str) -> int | None:
    """One thread where a step is too short to be shared; None: as many as there are.

    A function of the settings alone, so that two runs on one machine give the same bytes. Where other programs want
    the same processors, threads wait for each other at every operation: on two busy cores a step of 64 -> 512 took 8
    times as long with two threads, one of 128 -> 4,096 took 4 to 10 times as long.
    """
    work = 6.0 * settings.batch * d * settings.d_sae
    return 1 if device == "cpu" and work < SMALL else None


def busy_words(threads: int | None) -> str:
    """What to do where more threads are wanted than processors are free; "" where all is well.

    Examples
    --------
    >>> busy_words(1)
    ''
    """
    n, cores = threads or torch.get_num_threads(), os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if n == 1 or load + n <= BUSY * cores:
        return ""
    return (
        f"other programs keep {load:.1f} of {cores} processors busy, and {n} threads would wait for each other; if "
        "training is slow, run it with OMP_NUM_THREADS=1."
    )


@contextmanager
def using_threads(n: int | None) -> Iterator[None]:
    """A number of threads for torch, and the caller's afterwards; None changes nothing."""
    before = torch.get_num_threads()
    if n is None or n == before:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Clock:
    """Says once, after the first steps were timed, how long the rest will take."""

    def __init__(self, n_steps: int, start: int, needed: Budget) -> None:
        self.n_steps, self.start, self.needed, self.began = n_steps, start, needed, 0.0

    def tick(self, step: int) -> None:
        """One step is done."""
        if step - self.start == TIMED[0]:
            self.began = time.monotonic()
        if step - self.start == TIMED[1]:
            left = (time.monotonic() - self.began) / (TIMED[1] - TIMED[0]) * (self.n_steps - step)
            what = f"{self.n_steps - step:,} more steps: about {time_words(left)}"
            size = f"{words(self.needed.memory)} of memory, {words(self.needed.disk)} of disk"
            tqdm.write(f"{what}; {size}", file=sys.stderr)


def words(size: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> words(2_400_000_000), words(30_000_000), words(12_000)
    ('2.4 GB', '30 MB', '0.1 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.{0 if size >= 1e6 else 1}f} MB"


def time_words(seconds: float) -> str:
    """Seconds for people.

    Examples
    --------
    >>> time_words(4), time_words(130), time_words(9000)
    ('4 seconds', '2 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
