"""What the adapters library makes of each case, in its own environment; written as safetensors and JSON.

    python -m benchmarks.adapters_oracle.reference FOLDER [LABEL]

For every model the folder gets its base; for every comparison the weights of the adapter, which
are random and never the identity, where each stands, the outputs and the gradients.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import Fuse
from adapters.methods.adapter_layer_base import AdapterLayerBase
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.adapters_oracle import models
from benchmarks.adapters_oracle.case import Case
from benchmarks.adapters_oracle.cases import each
from benchmarks.adapters_oracle.changes import CHANGES
from benchmarks.adapters_oracle.theirs import FAILURE

NAME = "oracle"
FUSED = ("first", "second")
DEVIATION = 0.2


def bases(folder: Path) -> None:
    """Writes every base and its batch."""
    for number, name in enumerate(models.MODELS):
        torch.manual_seed(number)
        model = models.build(name)
        models.stir(model)
        model.save_pretrained(folder / name)
        batch = models.inputs(name)
        with torch.no_grad():
            logits = models.seen(model(**batch).logits, batch)
        save_file(batch | {"logits": logits}, folder / name / "batch.safetensors")


def adapted(case: Case, base: nn.Module) -> nn.Module:
    """Returns the base with the adapters of the case, stirred."""
    own = {id(parameter) for parameter in base.parameters()}
    adapters.init(base)
    parts = [getattr(adapters, name)(**settings) for name, settings in case.configs.items()]
    config = parts[0] if len(parts) == 1 else adapters.ConfigUnion(*parts)
    if case.fused:
        for name in FUSED:
            base.add_adapter(name, config=config)
        base.add_adapter_fusion(Fuse(*FUSED))
        base.train_adapter_fusion(Fuse(*FUSED))
    else:
        base.add_adapter(NAME, config=config)
        base.train_adapter(NAME)
    base.double().eval()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if id(parameter) not in own:
                noise = DEVIATION * torch.randn_like(parameter)
                if "vera_" in name:
                    # VeRA's vectors are the diagonals of matrices here: what is beside them stays zero.
                    noise *= parameter
                elif "parametrizations" in name:
                    # The diagonal of what an orthonormal matrix is made of holds its signs.
                    noise.fill_diagonal_(0)
                parameter.add_(noise)
            else:
                parameter.requires_grad_(False)
    return base


def tensors_of(model: nn.Module, base: set[int]) -> dict[str, Tensor]:
    """Returns the parameters of the adapters by name, and orthonormal matrices by that of what makes them."""
    found = {name: p for name, p in model.named_parameters() if id(p) not in base}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            found[f"{name}.weight"] = module.weight
            del found[f"{name}.parametrizations.weight.original"]
    return found


def places_of(model: nn.Module, names: list[str]) -> Iterator[tuple[str, list[Any]]]:
    """Yields for each parameter the library's word for the kind of place that its adapter stands at."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, AdapterLayerBase)]
    for name in names:
        owners = [(path, module) for path, module in layers if name.startswith(f"{path}.")]
        if owners:
            path, owner = owners[-1]
            yield name, [path, getattr(owner, "location_key", "model"), getattr(owner, "attn_key", None)]
        else:
            yield name, ["", "model", None]


def run(case: Case, name: str, folder: Path, into: Path) -> None:
    """Writes what the library computes for one comparison."""
    base = models.load(name, folder / name)
    own = {id(parameter) for parameter in base.parameters()}
    model = adapted(case, base)
    if case.change is not None:
        CHANGES[case.change](model)
    batch = models.inputs(name)
    with torch.no_grad():
        evaluated = models.seen(model(**batch).logits, batch)
    model.train()
    with parametrize.cached():
        tensors = tensors_of(model, own)
        trained = {key: value for key, value in tensors.items() if value.requires_grad}
        logits = models.seen(model(**batch).logits, batch)
        gradients = torch.autograd.grad(models.loss_of(logits), list(trained.values()), allow_unused=True)
    weights = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    save_file(weights, into / "weights.safetensors")
    found = {key: g.contiguous() for key, g in zip(trained, gradients, strict=True) if g is not None}
    save_file(found, into / "gradients.safetensors")
    save_file({"eval": evaluated, "train": logits.detach()}, into / "outputs.safetensors")
    (into / "places.json").write_text(json.dumps(dict(places_of(model, list(tensors))), indent=1))


def main() -> None:
    """Runs every case; what the library cannot run is written down with its error."""
    folder, only = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    transformers.logging.set_verbosity_error()
    bases(folder)
    versions = {module.__name__: module.__version__ for module in (adapters, transformers, torch)}
    (folder / "versions.json").write_text(json.dumps(versions))
    for number, (label, case, model) in enumerate(each()):
        if not re.search(only, label):
            continue
        torch.manual_seed(number)
        (folder / label).mkdir(parents=True, exist_ok=True)
        failure = folder / label / FAILURE
        failure.unlink(missing_ok=True)
        try:
            run(case, model, folder, folder / label)
        except Exception as error:
            # Whether it may fail is what the case says, where the two are compared.
            failure.write_text(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        print(label, case.method, flush=True)


if __name__ == "__main__":
    main()
