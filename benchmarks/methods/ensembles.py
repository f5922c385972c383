"""Five prompts trained and run in one batch, against each of them alone, on the encoder.

Prompt tuning (arXiv:2104.08691), section 6: the majority vote of five prompts beats their
average, and is as good as or better than the best of them. There nothing but prompts is trained;
here they share a trained head.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import peft_compiler as pc
from benchmarks.methods.encoding import chosen_rate
from benchmarks.methods.results import Results
from benchmarks.methods.sentences import Sentences
from benchmarks.methods.training import Batch, train

EXPERIMENT = "ensemble of prompts"
MEMBERS = 5


def compare_members(results: Results, task: Sentences, seed: int) -> None:
    """Trains one ensemble, and keeps the test accuracies of its members and of their two answers."""
    rate = chosen_rate(results, "prompt")
    key = {"experiment": EXPERIMENT, "rate": rate, "seed": seed}
    results.get(key, lambda: tested(task, rate, seed))


def tested(task: Sentences, rate: float, seed: int) -> dict[str, float | list[float]]:
    """Returns the accuracies of each member, of their mean logits and of their majority vote."""
    base = task.load(seed)
    ensemble = pc.compile(base, f"prompt ensemble={MEMBERS}; train head", task.test[0], seed=seed)
    train(ensemble, task.train, rate, seed)
    single = pc.compile(base, "prompt; train head", task.test[0], seed=seed)
    members = torch.stack([logits(member(single, ensemble, index), task.test) for index in range(MEMBERS)])
    # One batch of the compiled ensemble proves that the members are what it consists of.
    torch.testing.assert_close(
        logits(ensemble, task.test[:1]), members.mean(0)[: len(task.test[0]["labels"])], rtol=0, atol=1e-4
    )
    labels = torch.cat([batch["labels"] for batch in task.test])
    votes = nn.functional.one_hot(members.argmax(-1)).sum(0)
    return {
        "members": [share(each.argmax(-1) == labels) for each in members],
        "mean of the logits": share(members.mean(0).argmax(-1) == labels),
        "majority": share(votes.argmax(-1) == labels),
    }


def member(single: nn.Module, ensemble: nn.Module, index: int) -> nn.Module:
    """Returns `single` with one prompt of the ensemble, and with its head."""
    with torch.no_grad():
        for name, parameter in single.named_parameters():
            if parameter.requires_grad:
                trained = ensemble.get_parameter(name)
                parameter.copy_(trained[index] if trained.dim() > parameter.dim() else trained)
    return single


@torch.no_grad()
def logits(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Returns the logits (sentences, classes)."""
    model.eval()
    return torch.cat([model(**batch).logits for batch in batches])


def share(hits: Tensor) -> float:
    """Returns the share of hits."""
    return round(hits.double().mean().item(), 4)
