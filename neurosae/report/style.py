"""How figures look, and how they become SVG inside a page, SVG and PNG beside it.

A figure is drawn once, in the light palette. Inside the page its colours are CSS variables, so it follows the reader's
light or dark mode; its text stays text, in the page's font. The files on disk carry text as outlines.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec
from urllib.parse import quote, unquote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from neurosae.report.compact import compact

P = ParamSpec("P")

# Okabe and Ito's orange-red and blue differ for every kind of colour vision, and in grey.
INK, MUTED, FAINT, PAPER = "#1f2733", "#6b7480", "#d5d9de", "#ffffff"
PLUS, MINUS, REST, ACCENT = "#c8500a", "#0b6fae", "#aab2bc", "#0f7f6b"
GROUPS = ("#0b6fae", "#c8500a", "#0f7f6b", "#a8548f", "#9a7400", "#3f5a99")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    PAPER: "--card",
    PLUS: "--plus",
    MINUS: "--minus",
    REST: "--rest",
    ACCENT: "--accent",
    GROUPS[3]: "--purple",
    GROUPS[4]: "--olive",
    GROUPS[5]: "--indigo",
}
# Its ends differ by a hair from MINUS and PLUS: squares keep their colour in dark mode, where those are lighter.
DIVERGING = LinearSegmentedColormap.from_list("minus_plus", ["#0b6ead", "#f4f2ee", "#c74f0a"])
SEQUENTIAL = mpl.colormaps["cividis"]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")

RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": PAPER,
    "grid.color": FAINT,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "neurosae",
}


def drawn(figure: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the style of this project, whatever the session's settings are, and leave those alone."""

    @functools.wraps(figure)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(), _quiet("none"):
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            done = figure(*args, **kwargs)
            # The layout is solved here and not at every save; panels of equal aspect need the second pass.
            done.draw_without_rendering()
            done.draw_without_rendering()
            done.set_layout_engine("none")
            return done

    return styled


def canvas(width: float, height: float) -> Figure:
    """An empty figure in inches that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: object) -> str:
    r"""Text as matplotlib should print it: a dollar is a dollar and never begins a formula.

    Examples
    --------
    >>> plain("$x$ <b>")
    '\\$x\\$ <b>'
    """
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text)).replace("$", r"\$")


def shorten(text: object, n: int = 24) -> str:
    """Text of at most `n` characters, safe for a label.

    Examples
    --------
    >>> shorten("number_agreement", 8)
    'number_…'
    """
    words = str(text)
    return plain(words if len(words) <= n else words[: n - 1] + "…")


def note_of(text: object) -> str:
    """An SVG id that carries a tooltip; `svg_text` turns it into a `<title>` of the marked thing."""
    return "tip." + quote(str(text), safe="")


def tidy(axes: Axes, *, grid: Literal["both", "x", "y"] | None = None) -> None:
    """Quiet axes: thin lines, no tick marks, optional grid along one axis, behind everything."""
    axes.tick_params(length=0, pad=4)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(visible=True, axis=grid, linewidth=0.6)


def swarm(values: np.ndarray, width: float = 0.36) -> np.ndarray:
    """Vertical offsets that spread points where many lie; the same for the same values."""
    if not len(values):
        return np.zeros(0)
    counts, edges = np.histogram(values, bins=min(40, max(len(values), 1)))
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(counts) - 1)
    # The golden-ratio sequence fills an interval evenly without a random generator.
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    spread = (order * 0.6180339887498949) % 1 - 0.5
    return 2 * width * spread * np.sqrt(counts[bins] / counts.max())


@contextmanager
def _quiet(fonttype: str) -> Iterator[None]:
    # Scripts that the figure font lacks are drawn as boxes in PNG, and as real text inside the page.
    with mpl.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "neurosae"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing from")
        yield


def _render(figure: Figure, fonttype: str) -> str:
    buffer, dots = io.StringIO(), figure.dpi
    with _quiet(fonttype):  # the canvas itself: savefig draws everything twice, for a layout that is solved
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    figure.dpi = dots  # the canvas leaves that of its own coordinates
    return buffer.getvalue()


def svg_text(figure: Figure, name: str, title: str) -> str:
    """Turn a figure into an `<svg>` for the inside of a page.

    Parameters
    ----------
    figure : Figure
    name : str
        Prefix of every id in it, so that several figures live in one page.
    title : str
        What a screen reader says; plain text, escaped here.
    """
    svg = _render(figure, "none")
    svg = svg[svg.index("<svg") :]
    for part in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<defs>\s*</defs>"):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    width = re.search(r'width="([\d.]+)pt"', head)
    style = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    label = html.escape(title, quote=True)
    body = body.replace("font-family: 'DejaVu Sans'", "font-family: var(--sans)")
    body = re.sub(r' id="image[0-9a-f]+"', "", body)  # named by content: two equal pictures would share an id
    body = _tips(body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return compact(f'<svg {box[0] if box else ""} role="img" aria-label="{label}"{style}>{body}', prefix=name)


def _tips(body: str) -> str:
    """`<g id="tip.late%2F3">` becomes `<g class="tip"><title>late/3</title>`."""
    return re.sub(
        r'<g id="tip\.([^"]*)">', lambda m: f'<g class="tip"><title>{html.escape(unquote(m[1]))}</title>', body
    )


DOTS = 160  # per inch, of a PNG


def file_bytes(figure: Figure) -> tuple[bytes, bytes]:
    """SVG (text as outlines) and PNG (160 dots per inch) of a figure, with no date in them."""
    svg = _tips(re.sub(r"<!--.*?-->", "", _render(figure, "path"), flags=re.DOTALL))
    png, dots = io.BytesIO(), figure.dpi
    with _quiet("path"):
        figure.dpi = DOTS
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.dpi = dots
    return svg.encode(), png.getvalue()
