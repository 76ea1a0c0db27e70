"""How the dictionaries of a study were trained: what was left over, how many features were active, how many silent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from neurosae.report.parts import Drawing
from neurosae.report.stored import Study, section
from neurosae.report.style import ACCENT, MINUS, MUTED, PLUS, canvas, drawn, shorten, tidy
from neurosae.report.wording import listed

PANELS = ("variance unexplained", "active features per token", "silent features")


@drawn
def training_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """One row per dictionary over the tokens seen: FVU (dots: held-out text), L0 and k, share of dead features.

    Parameters
    ----------
    curves : mapping from site to its table `tokens fvu fvu_held_out l0 k dead`
    """
    figure = canvas(7.6, 0.7 + 1.75 * len(curves))
    for number, (site, table) in enumerate(curves.items()):
        row = [figure.add_subplot(len(curves), 3, 3 * number + i + 1) for i in range(3)]
        _draw_row(row, table.astype(float))
        for axes, title in zip(row, PANELS, strict=True):
            if number == 0:
                axes.set_title(title)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            tidy(axes, grid="y")
        row[0].set_ylabel(shorten(site))
        if number == len(curves) - 1:
            row[1].set_xlabel("tokens seen")
    return figure


def _draw_row(row: list[Axes], table: pd.DataFrame) -> None:
    tokens, held_out = table["tokens"], table[table["fvu_held_out"].notna()]
    row[0].plot(tokens, table["fvu"], color=MINUS, lw=1.1)
    row[0].plot(held_out["tokens"], held_out["fvu_held_out"], "o", color=PLUS, ms=2.6)
    row[1].plot(tokens, table["k"], color=MUTED, lw=0.9, ls="--")
    row[1].plot(tokens, table["l0"], color=ACCENT, lw=1.1)
    row[2].plot(tokens, table["dead"], color=MINUS, lw=1.1)
    row[2].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes, names in ((row[0], ["fvu", "fvu_held_out"]), (row[2], ["dead"])):
        axes.set_ylim(0, max(1e-3, min(1.0, 1.15 * float(table[names].max().max()))))
    row[1].set_ylim(bottom=0)


def draw_training(study: Study) -> Iterator[Drawing]:
    """The curves of the dictionaries that were trained for this study, with what was said during training."""
    cards = {site: section(study.provenance, "dictionaries", site, "card") for site in _sites(study)}
    curves = {site: pd.DataFrame(dict(section(card, "curve"))) for site, card in cards.items()}
    curves = {site: table for site, table in curves.items() if len(table)}
    if not curves:
        return
    said = [f"{site}: {words}" for site in curves for words in _said(cards[site])]
    caption = (
        "Over the tokens seen in training: the fraction of variance unexplained (line: training batches, dots: "
        "held-out text), active features per token beside the k that was asked for (dashed), and the share of "
        f"features that were silent. {' '.join(said)}"
    ).strip()
    title = f"How the dictionaries at {listed(list(curves))} were trained"
    yield Drawing("training", "training", "", title, caption, training_curves(curves))


def _sites(study: Study) -> list[str]:
    return list(section(study.provenance, "dictionaries"))


def _said(card: Mapping[str, object]) -> list[str]:
    warned = card.get("warnings")
    sentences = [str(card["gamma_means"])] if card.get("gamma_means") else []
    return sentences + [str(words) for words in (warned if isinstance(warned, list | tuple) else ())]
