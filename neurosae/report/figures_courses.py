"""Figure of what was collapsed: the found features at every token of their region."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neurosae.report.style import MINUS, PLUS, canvas, drawn, note_of, plain, shorten, tidy
from neurosae.report.tables import KEY, place_word
from neurosae.report.wording import digits, feature_name


@drawn
def courses(table: pd.DataFrame, *, ends: Mapping[str, tuple[str, str]] | None = None, top: int = 8) -> Figure:
    """Mean activation of the top features token by token, over the + and over the - cells.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position effect feature side token mean density n_items`; features in order of
        appearance. The area of a dot shows the share of items in which the feature is active.
    ends : mapping from effect to (name of its - end, name of its + end), optional
    top : int
        At most this many features.
    """
    table = table.assign(**{c: table[c].astype(object) for c in KEY})
    groups = list(table.groupby(KEY, sort=False, dropna=False))[:top]
    n_rows = max(-(-len(groups) // 4), 1)
    n_columns = max(-(-len(groups) // n_rows), 1)
    figure = canvas(0.5 + 1.85 * n_columns, 2.35 * n_rows)
    for number, (key, rows) in enumerate(groups):
        axes = figure.add_subplot(n_rows, n_columns, number + 1)
        names = (ends or {}).get(str(key[3]), ("− cells", "+ cells"))
        for side, colour, name in (("minus", MINUS, names[0]), ("plus", PLUS, names[1])):
            part = rows[rows["side"] == side].sort_values("token")
            axes.plot(part["token"], part["mean"], color=colour, linewidth=1.6, label=shorten(name, 14))
            for token, mean, density, n in part[["token", "mean", "density", "n_items"]].itertuples(index=False):
                dot = axes.scatter([token], [mean], s=8 + 60 * density, color=colour, linewidths=0, zorder=3)
                dot.set_gid(note_of(f"token {token}: {digits(float(mean))}, active in {density:.0%} of {n} items"))
        axes.set_title(shorten(feature_name(key[0], key[4])), fontsize=9)
        axes.set_xlabel(plain(f"token of {place_word('region', key[1])}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        tidy(axes, grid="y")
        if number % n_columns == 0:
            axes.set_ylabel("mean activation")
    if figure.axes:
        lines = figure.axes[0].get_legend_handles_labels()
        if len({str(key[3]) for key, _ in groups}) == 1:
            figure.legend(*lines, loc="outside right upper")
    return figure
