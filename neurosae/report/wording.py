"""Numbers and names as a reader sees them; rounding happens here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import beta

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"


def digits(value: object, n: int = 3) -> str:
    """A number to `n` significant digits, a dash where there is none; for display only.

    Examples
    --------
    >>> digits(0.0012345), digits(-12.345), digits(4.2e-9), digits(16777216), digits(None), digits(2.0)
    ('0.00123', '−12.3', '4.20 × 10⁻⁹', '16,777,216', '–', '2.00')
    """
    if value is None or pd.isna(value):  # pyright: ignore
        return MISSING
    number = float(value)  # pyright: ignore
    if not np.isfinite(number):
        return "∞" if number > 0 else "−∞"
    if isinstance(value, int | np.integer) or (number == round(number) and abs(number) >= 1000):
        return f"{int(number):,}".replace("-", "−")
    if number == 0:
        return "0"
    size = int(np.floor(np.log10(abs(float(f"{number:.{n - 1}e}")))))
    if size < -4 or size > 5:
        mantissa, power = f"{number:.{n - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(power)).translate(SUPERSCRIPT)}".replace("-", "−")
    return f"{number:,.{max(n - 1 - size, 0)}f}".replace("-", "−")


def count_interval(p: object, n_perm: object, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a p-value that was counted over `n_perm` relabellings.

    The identity always counts, so the bounds are those of p * n_perm hits among n_perm draws.

    Examples
    --------
    >>> low, high = count_interval(0.01, 10_000)
    >>> round(low, 4), round(high, 4)
    (0.0081, 0.0121)
    """
    if pd.isna(p) or pd.isna(n_perm) or int(n_perm) < 1:  # pyright: ignore
        return float("nan"), float("nan")
    n = int(n_perm)  # pyright: ignore
    hits = min(max(round(float(p) * n), 1), n)  # pyright: ignore
    tail = (1 - level) / 2
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return float(beta.ppf(tail, hits, n - hits + 1)), high


def p_words(p: object, low: object = None, high: object = None) -> str:
    """A p-value to three significant digits with its Monte-Carlo interval where it has one; never 0.

    Examples
    --------
    >>> p_words(0.0101, 0.0082, 0.0123), p_words(0.25), p_words(1e-7)
    ('0.0101 [0.00820, 0.0123]', '0.250', '1.00 × 10⁻⁷')
    """
    if low is None or high is None or pd.isna(low) or pd.isna(high):  # pyright: ignore
        return digits(p)
    return f"{digits(p)} [{digits(low)}, {digits(high)}]"


def listed(names: Iterable[object], *, last: str = "and") -> str:
    """A list in a sentence.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed(["a", "b"]), listed([])
    ('a, b and c', 'a and b', '')
    """
    words = [str(name) for name in names]
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def plural(n: int, noun: str, many: str | None = None) -> str:
    """A count with its noun.

    Examples
    --------
    >>> plural(1, "item"), plural(24, "item"), plural(0, "discovery", "discoveries")
    ('1 item', '24 items', '0 discoveries')
    """
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def slug(name: object) -> str:
    """A safe file name or HTML id made from any text; texts that differ only in odd characters stay apart.

    Examples
    --------
    >>> slug("number"), slug("../évil <b>"), slug("")
    ('number', 'evil-b-951d', 'x-e3b0')
    """
    import hashlib
    import unicodedata

    text = str(name)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-.")[:60]
    same = safe == text
    return safe if same and safe else f"{safe or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def feature_name(site: object, feature: object) -> str:
    """`site/feature`, as features are named everywhere.

    Examples
    --------
    >>> feature_name("late", 311), feature_name("late", None)
    ('late/311', 'late')
    """
    return str(site) if feature is None or pd.isna(feature) else f"{site}/{int(feature)}"  # pyright: ignore
