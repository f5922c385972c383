"""What is tried on models that transformers spreads over two processes by their `tp_plan`."""

import copy
import filecmp
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import DistributedConfig
from transformers.utils import logging

import peft_compiler as pc
from peft_compiler.plan import is_inserted
from tests import zoo

MOVED = "LoRA r=2 on all linear; deep prompts length=2; SSF on q, down; OFT block_size=8 on o; train head"
MERGED = "LoRA r=2 on all linear; DoRA r=2 on v, o; IA3 on k, down; train head"
WORDS: dict[str, Any] = {"version": 1, "rules": [{"use": {"prefix": {"tokens": [5, 6, 7]}}}]}
NORMS = "train norm; LoRA r=2 on q"
PACKED = {
    "model.layers.*.mlp.gate_up_proj": "packed_colwise",
    "model.layers.*.mlp.down_proj": "rowwise",
}
"""A plan of one's own, by which each process has the first part of two, and the second part of two."""


def spread_base(name: str, folder: Path, plan: Any = "auto") -> Any:
    """Returns the model of that name in the zoo, of which each process holds a part."""
    model: Any = zoo.build(name)
    if torch.distributed.get_rank() == 0:
        model.save_pretrained(folder / name)
    torch.distributed.barrier()
    logging.disable_progress_bar()
    config = DistributedConfig(tp_plan=plan, tp_size=torch.distributed.get_world_size())
    return type(model).from_pretrained(folder / name, distributed_config=config)


def moved(tuned: nn.Module) -> Any:
    """Returns a compiled model with values as training might leave them, in place, in eval mode."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if is_inserted(name):
                parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.1)
    return tuned.eval()


def found_in(tuned: Any, ids: Tensor) -> dict[str, Any]:
    """Returns what a model computes, as files of JSON hold it."""
    with torch.no_grad():
        logits = tuned(input_ids=ids).logits
        tokens = tuned.generate(ids, max_new_tokens=4, do_sample=False)
    return {"logits": logits.tolist(), "tokens": tokens.tolist()}


def gradients(tuned: nn.Module, ids: Tensor) -> dict[str, Any]:
    """Returns the gradient of each inserted parameter."""
    loss: Tensor = tuned(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return {name: p.grad.tolist() for name, p in tuned.named_parameters() if p.grad is not None}


def are_alike(tuned: nn.Module) -> bool:
    """Whether both processes have the same inserted parameters, bit for bit."""
    ours = [p.detach().numpy().tobytes() for name, p in tuned.named_parameters() if is_inserted(name)]
    both: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(both, ours)
    return both[0] == both[1]


def tried(folder: Path, ids: Tensor) -> dict[str, Any]:
    """Returns what was found in a spread model, its copy, its file and what it is merged to."""
    base = spread_base("llama", folder)
    tuned = moved(pc.compile(base, MOVED))
    found: dict[str, Any] = {"moved": found_in(tuned, ids), "gradients": gradients(tuned, ids)}
    if torch.distributed.get_rank() == 0:
        pc.save(tuned, folder / "spread")
        pc.save(moved(pc.compile(zoo.build("llama"), MOVED)), folder / "whole")
    torch.distributed.barrier()
    found["files"] = filecmp.cmpfiles(
        folder / "spread", folder / "whole", ["adapter.json", "adapter.safetensors"], shallow=False
    )[0]
    found["loaded"] = found_in(pc.load(base, folder / "whole").eval(), ids)
    found["copied"] = found_in(copy.deepcopy(tuned), ids)
    found["words"] = found_in(pc.compile(base, WORDS).eval(), ids)
    foldable = moved(pc.compile(base, MERGED))
    found["foldable"], found["merged"] = found_in(foldable, ids), found_in(pc.merge(foldable), ids)
    found["verified"] = [str(finding) for finding in pc.verify(tuned).findings if not finding.ok]
    normed = moved(pc.compile(spread_base("qwen3", folder), NORMS))
    found["norms"], found["gradients of norms"] = found_in(normed, ids), gradients(normed, ids)
    found["refused"] = [
        _refusal(spread_base("mixtral", folder)),
        _refusal(spread_base("phi3", folder, PACKED)),
    ]
    return found


def _refusal(base: nn.Module) -> str:
    try:
        pc.compile(base, "LoRA r=2 on up")
    except pc.LoweringError as error:
        return error.problems[0]
    return "compiled"
