"""The benchmark of capture runs; how long anything takes is never asked."""

from functools import partial
from pathlib import Path

from benchmarks import capture
from benchmarks.capture import Cost, Shape


def test_a_small_shape_is_measured_in_a_process_of_its_own() -> None:
    cost = capture.measured(partial(capture.vit, layers=2), runs=1)
    assert cost.sites > 20
    assert cost.memory > 100 * capture.MIB


def test_the_page_and_the_plot_say_what_was_measured(tmp_path: Path) -> None:
    costs = {Shape("a shape", capture.vit, 0.6): Cost(0.1, 0.25, 12, 300 * capture.MIB)}
    growth = {"a kind": [Cost(0.1, 0.1, 1, 1), Cost(0.4, 0.3, 1, 1)]}
    page = capture.report(costs, (8, 18), growth)
    assert "| a shape | 12 | 0.10 | 0.25 | 0.35 | 0.6 | 300 |" in page
    assert "| a kind | 0.20 | 0.70 | 50.0 |" in page
    capture.draw((8, 18), growth, tmp_path / "capture.svg")
    assert "a kind" in (tmp_path / "capture.svg").read_text()
