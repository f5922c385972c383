"""`methods.md`: what came out, from the results that are there."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import claims, ensembles, naming, sentences, training, writing
from benchmarks.methods.claims import NOTHING, Best
from benchmarks.methods.encoding import FIRST, chosen_rate
from benchmarks.methods.results import Results
from benchmarks.methods.rows import HEAD_ALONE, ROWS, Row

TEMPLATE = Path(__file__).with_name("template.md")
WITH_MLP, WITHOUT_MLP = "prefix", "prefix without its MLP"
PREFIXES = (WITH_MLP, WITHOUT_MLP, "deep_prompts", "deep_prompts at a scale of 0.1")

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One method: its name and family, its trained parameters, mean accuracy and spread between seeds."""

    name: str
    family: str
    parameters: int
    accuracy: float
    spread: float


def report(results: Results) -> str:
    """Returns the whole document."""
    error = math.sqrt(0.8 * 0.2 / sentences.TEST)
    return TEMPLATE.read_text().format(
        length=sentences.LENGTH,
        split=sentences.SPLIT,
        train=sentences.TRAIN,
        validation=sentences.VALIDATION,
        test=sentences.TEST,
        size=sentences.SIZE,
        steps=sentences.TRAIN // sentences.SIZE,
        frequent=sentences.FREQUENT,
        warm_up=f"{training.WARM_UP:.0%}",
        largest_gradient=f"{training.LARGEST_GRADIENT:g}",
        head_rate=f"{training.HEAD_RATE:g}",
        error=f"{error:.3f}",
        noise=f"{2 * error:.2f}",
        methods=methods_table(results),
        rates=rates_table(results),
        missing=missing(results),
        reparametrisation=prefix_table(results),
        reparametrisation_verdict=verdict(
            "with the MLP", by_seed(results, WITH_MLP), "without it", by_seed(results, WITHOUT_MLP), max
        ),
        prompt_alone=f"{statistics.mean(by_seed(results, 'prompt').values()):.3f}",
        head_alone=f"{head_alone(results):.3f}",
        naming_error=f"{math.sqrt(0.8 * 0.2 / naming.TEST):.3f}",
        members=ensembles.MEMBERS,
        ensembles=ensembles_table(results),
        ensembles_verdict=ensembles_verdict(results),
        apart=apart_table(results),
        labels=naming.AT_LABELS,
        writing_length=writing.LENGTH,
        writing_train=writing.TRAIN,
        writing_validation=writing.VALIDATION,
        writing_test=writing.TEST,
        writing_size=writing.SIZE,
        writing_epochs=writing.EPOCHS,
        words=writing.WORDS,
        prefixes=arms_table(results, writing.EXPERIMENT, min),
        prefixes_verdict=arms_verdict(results, writing.EXPERIMENT, writing.AT_WORDS, writing.AT_RANDOM, min),
        prompt=naming.PROMPT,
        naming_train=naming.TRAIN,
        naming_validation=naming.VALIDATION,
        naming_test=naming.TEST,
        naming_size=naming.SIZE,
        prompts=arms_table(results, naming.EXPERIMENT, max),
        prompts_verdict=arms_verdict(results, naming.EXPERIMENT, naming.AT_LABELS, naming.AT_RANDOM, max),
    )


def lines_of(results: Results, row: Row) -> list[Line]:
    """Returns the results of a row at its chosen rate, one for each seed; none if it was not run yet."""
    if not results.of(experiment="methods", row=row.name):
        return []
    return results.of(experiment="methods", row=row.name, rate=chosen_rate(results, row.name))


def by_seed(results: Results, name: str) -> dict[int, float]:
    """Returns the accuracy of a row for each seed."""
    [row] = [row for row in ROWS if row.name == name]
    return {line["seed"]: line["test"] for line in lines_of(results, row)}


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation between seeds, which is zero for one seed."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shown(lines: Sequence[Line]) -> str:
    """Returns the mean of the test scores with its spread, where there are several seeds.

    >>> shown([{"test": 0.75}]), shown([{"test": 0.7}, {"test": 0.8}])
    ('0.750', '0.750 ± 0.071')
    """
    mean, spread = mean_and_spread(line["test"] for line in lines)
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(lines) > 1 else "")


def points(results: Results) -> list[Point]:
    """Returns what is drawn: every row but the head alone."""
    found: list[Point] = []
    for row in ROWS:
        if lines := lines_of(results, row):
            mean, spread = mean_and_spread(line["test"] for line in lines)
            found.append(Point(row.name, row.family, lines[0]["parameters"], mean, spread))
    return found


def head_alone(results: Results) -> float:
    """Returns the mean accuracy of the trained head on the frozen encoder."""
    return statistics.mean(line["test"] for line in lines_of(results, HEAD_ALONE))


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def methods_table(results: Results) -> str:
    """Returns every row with its parameters and accuracy, the smallest first."""
    found = [(row, lines) for row in (HEAD_ALONE, *ROWS) if (lines := lines_of(results, row))]
    found.sort(key=lambda pair: pair[1][0]["parameters"])
    return table(
        ("method", "spec", "trained", "kept", "accuracy", "seeds"),
        (
            (
                row.name,
                f"`{row.sentence}`" if row.sentence else "",
                f"{lines[0]['parameters']:,}",
                f"{lines[0]['kept']:,}",
                shown(lines),
                len(lines),
            )
            for row, lines in found
        ),
    )


def missing(results: Results) -> str:
    """Returns which methods have a row but no results yet, as a sentence."""
    names = [row.name for row in ROWS if not lines_of(results, row)]
    return f" Not run yet: {', '.join(names)}." if names else ""


def rates_table(results: Results) -> str:
    """Returns what each row's learning rate was chosen by."""
    return table(
        ("method", "rate: accuracy on validation", "chosen"),
        (
            (
                row.name,
                tried(results.of(experiment="methods", row=row.name, seed=FIRST)),
                f"{chosen_rate(results, row.name):g}",
            )
            for row in ROWS
            if lines_of(results, row)
        ),
    )


def tried(lines: Iterable[Line]) -> str:
    """Returns the rates that were tried, each with its score on what is kept for validation."""
    by_rate = sorted(lines, key=lambda line: line["rate"])
    return ", ".join(f"{line['rate']:g}: {line['validation']:.3f}" for line in by_rate)


def prefix_table(results: Results) -> str:
    """Returns the rows that differ in how keys and values of prompts are given."""
    return table(
        ("spec", "rate", "accuracy", "seeds"),
        (
            (f"`{row.sentence}`", f"{chosen_rate(results, row.name):g}", shown(lines), len(lines))
            for row in ROWS
            if row.name in PREFIXES and (lines := lines_of(results, row))
        ),
    )


def ensembles_table(results: Results) -> str:
    """Returns each seed's members and their answers."""
    return table(
        ("seed", "average of the five", "best of the five", "mean of the logits", "majority vote"),
        (
            (
                line["seed"],
                f"{statistics.mean(line['members']):.3f}",
                f"{max(line['members']):.3f}",
                f"{line['mean of the logits']:.3f}",
                f"{line['majority']:.3f}",
            )
            for line in results.of(experiment=ensembles.EXPERIMENT)
        ),
    )


def ensembles_verdict(results: Results) -> str:
    """Returns whether the vote is above the average and the best."""
    lines = results.of(experiment=ensembles.EXPERIMENT)
    above = sum(line["majority"] > statistics.mean(line["members"]) for line in lines)
    best = sum(line["majority"] >= max(line["members"]) for line in lines)
    return (
        f"The vote is above the average with {above} of {len(lines)}, and at least as good as the best "
        f"with {best} of {len(lines)}."
    )


def apart_table(results: Results) -> str:
    """Returns what the prompts that were trained apart, one with each seed, answer together."""
    lines = arm_lines(results, naming.EXPERIMENT, max)[naming.AT_LABELS]
    scores = [line["test"] for line in lines]
    margins = list(zip(*(line["margins"] for line in lines), strict=True))
    mean = naming.right([statistics.mean(each) for each in margins])
    majority = naming.right([sum(margin > 0 for margin in each) - len(each) / 2 for each in margins])
    heading = ("prompts", "average", "best", "mean of the logits", "majority vote")
    figures = (statistics.mean(scores), max(scores), mean, majority)
    return table(heading, [(len(lines), *(f"{figure:.3f}" for figure in figures))])


def arm_lines(results: Results, experiment: str, best: Best) -> dict[str, list[Line]]:
    """Returns the results of each arm at its own best rate."""
    arms = dict.fromkeys(line["arm"] for line in results.of(experiment=experiment) if line["arm"] != NOTHING)
    rates = {arm: claims.chosen_rate(results, experiment, arm, best) for arm in arms}
    return {arm: results.of(experiment=experiment, arm=arm, rate=rate) for arm, rate in rates.items()}


def arms_table(results: Results, experiment: str, best: Best) -> str:
    """Returns an experiment's arms, and the base with nothing inserted."""
    [alone] = results.of(experiment=experiment, arm=NOTHING)
    rows: list[Sequence[object]] = [(NOTHING, "", "", f"{alone['test']:.3f}", "")]
    for arm, lines in arm_lines(results, experiment, best).items():
        at_first = tried(results.of(experiment=experiment, arm=arm, seed=0))
        rows.append((arm, at_first, f"{lines[0]['rate']:g}", shown(lines), len(lines)))
    return table(("start", "rate: on validation", "chosen", "on test", "seeds"), rows)


def arms_verdict(results: Results, experiment: str, first: str, second: str, best: Best) -> str:
    """Returns which of two arms is better, and with how many seeds."""
    scores = {
        arm: {line["seed"]: line["test"] for line in lines}
        for arm, lines in arm_lines(results, experiment, best).items()
    }
    return verdict(first, scores[first], second, scores[second], best)


def verdict(
    first: str, scores: Mapping[int, float], second: str, others: Mapping[int, float], best: Best
) -> str:
    """Returns which of two is better, seed by seed.

    >>> verdict("a", {0: 0.7, 1: 0.8}, "b", {0: 0.6, 1: 0.9}, max)
    'Here: a 0.750, b 0.750; better a with 1 of 2 seeds.'
    """
    seeds = sorted(scores.keys() & others.keys())
    pairs = [(scores[seed], others[seed]) for seed in seeds]
    wins = sum(one != other and best((one, other)) == one for one, other in pairs)
    one, other = (statistics.mean(each) for each in zip(*pairs, strict=True))
    number = f"{wins} of {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return f"Here: {first} {one:.3f}, {second} {other:.3f}; better {first} with {number}."
