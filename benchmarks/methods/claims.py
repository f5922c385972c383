"""Claims on how to start: the same method with different first values, each at its own best rate."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.methods.results import Results

Best = Callable[[Iterable[float]], float]
"""Returns the best of some scores: `max` for an accuracy, `min` for a loss."""

NOTHING = "nothing inserted"
"""The arm that is the base itself."""


@dataclass(frozen=True)
class Claim:
    """Arms that are compared.

    Attributes:
        experiment: What the results are filed under.
        arms: A sentence for each arm.
        rates: The learning rates that each arm is tried with.
        best: What a good score is.
        alone: Returns the test score of the base.
        run: Trains a sentence at a rate with a seed; returns its scores `validation` and `test`.
    """

    experiment: str
    arms: Mapping[str, str]
    rates: tuple[float, ...]
    best: Best
    alone: Callable[[], float]
    run: Callable[[str, float, int], Mapping[str, Any]]

    def try_with(self, results: Results, seed: int) -> None:
        """Runs every arm with one seed; with the first one, at every rate."""
        if seed == 0:
            key = {"experiment": self.experiment, "arm": NOTHING}
            results.get(key, lambda: {"test": self.alone()})
        for arm, sentence in self.arms.items():
            rates = self.rates if seed == 0 else (chosen_rate(results, self.experiment, arm, self.best),)
            for rate in rates:
                key = {"experiment": self.experiment, "arm": arm, "rate": rate, "seed": seed}
                results.get(key, lambda sentence=sentence, rate=rate: self.run(sentence, rate, seed))


def chosen_rate(results: Results, experiment: str, arm: str, best: Best) -> float:
    """Returns an arm's rate with the best score on what is kept for validation, the lowest of equal ones."""
    tried = results.of(experiment=experiment, arm=arm, seed=0)
    score = best(line["validation"] for line in tried)
    return min(line["rate"] for line in tried if line["validation"] == score)
