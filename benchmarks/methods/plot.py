"""Every method's accuracy against its trained parameters, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # measures texts; the file is SVG all the same
from matplotlib import pyplot
from matplotlib.transforms import Bbox

from benchmarks.methods.report import Point

PLACES = [(5, 0, "left", "center"), (-5, 0, "right", "center"), (0, 6, "center", "bottom")]
PLACES += [(0, -6, "center", "top"), (6, 7, "left", "bottom"), (6, -7, "left", "top")]
PLACES += [(-6, 7, "right", "bottom"), (-6, -7, "right", "top")]
PLACES += [
    (8, 15, "left", "bottom"),
    (8, -15, "left", "top"),
    (-8, 15, "right", "bottom"),
    (-8, -15, "right", "top"),
]
"""Where a name may stand beside its point, best first: offset and alignment."""


def draw(points: Sequence[Point], head_alone: float, file: Path) -> None:
    """Writes the picture; equal points give the same file byte for byte."""
    with pyplot.rc_context({"svg.hashsalt": "methods", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = pyplot.subplots(figsize=(10, 6.5))
        families = list(dict.fromkeys(point.family for point in points))
        for index, family in enumerate(families):
            members = [point for point in points if point.family == family]
            axes.errorbar(
                [point.parameters for point in members],
                [point.accuracy for point in members],
                yerr=[point.spread for point in members],
                fmt="o",
                markersize=4,
                elinewidth=0.6,
                color=f"C{index}",
                label=family,
            )
        axes.axhline(head_alone, linestyle="--", linewidth=0.8, color="gray")
        axes.annotate(
            "head alone", (1, head_alone), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.06)
        axes.set_xlabel("trained parameters beside the head")
        axes.set_ylabel("accuracy")
        axes.legend(loc="lower left", frameon=False)
        name_points(figure, axes, points)
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)


def name_points(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Writes each point's name where it covers least of what is there."""
    renderer = figure.canvas.get_renderer()
    taken = [
        Bbox.from_bounds(x - 3, y - 3, 6, 6)
        for x, y in axes.transData.transform([(point.parameters, point.accuracy) for point in points])
    ]
    for point in points:
        tried: list[tuple[int, Any, Any]] = []
        for x, y, horizontal, vertical in PLACES:
            text = axes.annotate(
                point.name,
                (point.parameters, point.accuracy),
                (x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=7,
            )
            box = text.get_window_extent(renderer)
            tried.append((sum(box.overlaps(other) for other in taken), box, text))
        covered = min(overlaps for overlaps, _, _ in tried)
        kept = next(index for index, (overlaps, _, _) in enumerate(tried) if overlaps == covered)
        for index, (_, box, text) in enumerate(tried):
            if index == kept:
                taken.append(box)
            else:
                text.remove()
