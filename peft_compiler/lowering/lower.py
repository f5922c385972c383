"""Plan x model to compiled model: copies, inserts, rewrites, freezes. The caller's model stays as it was."""

import copy
import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_compiler.copies import AnyModule, as_whole, copied
from peft_compiler.digests import digest
from peft_compiler.errors import LoweringError
from peft_compiler.lowering.alike import share_alike
from peft_compiler.lowering.compilation import Compilation, compilation_of
from peft_compiler.lowering.edit import Carrier, Edit, Flavour
from peft_compiler.lowering.extend_input import edits_of
from peft_compiler.lowering.homes import differs, put_home, types_in
from peft_compiler.lowering.layouts import Layout, layouts_of
from peft_compiler.lowering.modes import keep_modes
from peft_compiler.lowering.observing import observe
from peft_compiler.lowering.rewritten import Rewritten, restore, rewrite
from peft_compiler.lowering.routed import edits_of_stacks, router_in
from peft_compiler.lowering.sharing import share, sharing_problems
from peft_compiler.lowering.signature import nearest_config
from peft_compiler.lowering.snapshots import evaluated
from peft_compiler.lowering.storage import kept_by, on_same_storage, tensors_beside
from peft_compiler.methods import Wiring
from peft_compiler.methods._prompts import StartsAtWords
from peft_compiler.methods._routing import Router
from peft_compiler.plan import NAMESPACE, Insertion, Plan, is_inserted
from peft_compiler.quantised import packed_in, state_of
from peft_compiler.site import Site, Stack


def lower(
    model: AnyModule,
    plan: Plan,
    seed: int,
    example_inputs: Mapping[str, Any],
    shared_with: nn.Module | None = None,
) -> AnyModule:
    """Returns a model that shares the weights of `model` and holds the insertions of `plan`.

    Only the inserted parameters require gradients. Each insertion draws from a generator of
    its own, seeded by `seed` and its path, so another rule changes none of its initial values.
    With a compiled model to share with, what rules insert has that one's parameters instead.

    Raises:
        LoweringError: If a place cannot be rewritten, or an insertion cannot be shared.
    """
    digests = digests_of(model)
    problems = [] if shared_with is None else [*sharing_problems(model, plan, digests, shared_with)]
    if problems:
        raise LoweringError("the plan cannot be lowered", problems)
    compiled = shared_copy(model)
    _insert(compiled, plan, seed, example_inputs, shared_with)
    _rewrite_fused_ancestors(compiled)
    _rewrite_root(compiled)
    keep_modes(compiled)
    compiled.__dict__["compilation"] = Compilation(plan, seed, dict(example_inputs), digests)
    _check_count(compiled, plan)
    warm_up(compiled)
    return compiled


def shared_copy(model: AnyModule) -> AnyModule:
    """Returns a copy of `model` on the storage of its parameters, frozen; buffers are copied.

    A forward that was put in the place of a module's own, and calls that one of the original, is left
    behind: in the copy it would run the original.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        # A new object, so that freezing it, or moving it to another device, leaves the caller's alone.
        memo[id(parameter)] = on_same_storage(parameter)
    for module in model.modules():
        if packed_in(module):
            memo.update({id(tensor): tensor for tensor in tensors_beside(module)})
    compiled = copied(model, memo)
    for parameter in model.parameters():
        # Only now: what a quantised weight keeps may refer to the module that it belongs to.
        if kept := kept_by(parameter):
            vars(memo[id(parameter)]).update(copy.deepcopy(kept, memo))
    return compiled


def reference_of(tuned: AnyModule) -> AnyModule:
    """Returns the base of a compiled model to compare it with, such as the reference of DPO.

    It is plain, of the original class, and frozen. Its parameters are those of `tuned` themselves, not
    only their values: they take no memory, and move wherever `tuned` moves.

    Raises:
        PeftCompilerError: If `tuned` is not a compiled model.
    """
    compilation_of(tuned)
    kept = {id(parameter): parameter for name, parameter in tuned.named_parameters() if not is_inserted(name)}
    return _without_insertions(copied(tuned, dict(kept)))


def base_of(compiled: AnyModule) -> AnyModule:
    """Returns a plain model of the original classes, without insertions, on the same weights."""
    return _without_insertions(shared_copy(compiled))


def _without_insertions(base: AnyModule) -> AnyModule:
    """Returns a copy of a compiled model after taking out, in place, what was inserted."""
    base.__dict__.pop("compilation", None)
    for module in list(base.modules()):
        if isinstance(module, Rewritten):
            if NAMESPACE in dict(module.named_children()):
                delattr(module, NAMESPACE)
            restore(module)
    return base


def digests_of(model: nn.Module) -> dict[str, str]:
    """Returns the digest of each parameter and buffer of the base, by name; none on the meta device.

    With what else belongs to its state: the scales of a quantised layer.
    """
    return {
        name: digest(tensor)
        for name, tensor in state_of(model).items()
        if not is_inserted(name) and not tensor.is_meta
    }


def warm_up(compiled: nn.Module) -> None:
    """Calls the model once on its example, so that a place that cannot be rewritten shows up now."""
    if any(tensor.is_meta for tensor in compiled.parameters()):
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluated(compiled):
        compiled(**compilation_of(compiled).example_on(compiled))


def _insert(
    compiled: nn.Module,
    plan: Plan,
    seed: int,
    example_inputs: Mapping[str, Any],
    shared_with: nn.Module | None,
) -> None:
    """Builds every insertion from the plain model, then puts all in and rewrites what they join."""
    layouts = layouts_of(compiled, (insertion.site for insertion in plan.insertions), example_inputs)
    built: dict[str, nn.ModuleDict] = {}
    shared: dict[Hashable, nn.Module] = {}
    for insertion in plan.insertions:
        path = insertion.site.path
        host = compiled.get_submodule(path)
        generator = generator_for(insertion.path, seed)
        module = insertion.method.build(insertion.site, as_whole(host), generator)
        is_copy = insertion.wiring is Wiring.REPLACE
        module = put_home(module, host, compiled, plan.spec.dtype, is_copy)
        built.setdefault(path, nn.ModuleDict())[insertion.name] = module
        share_alike(module, insertion.rule, shared)
    edits = _edits(compiled, plan.insertions, built, layouts)
    _start_at_words(compiled, plan, built, example_inputs, layouts)
    if shared_with is not None:
        share(built, plan, shared_with)
    for path, inserted in built.items():
        host = compiled.get_submodule(path)
        if hasattr(host, NAMESPACE):
            where = path or "the model"
            raise LoweringError(
                f"{where} already has an attribute {NAMESPACE!r}, where insertions would live"
            )
        # A host that keeps codes is in train mode always: see `keep_modes`.
        mode = compiled.training if packed_in(host) else host.training
        host.add_module(NAMESPACE, inserted.train(mode))
    for path, joined in edits.items():
        rewrite(
            compiled.get_submodule(path),
            tuple(joined),
            nearest_config(compiled, path),
            _flavour(compiled, path, joined),
        )


def _edits(
    compiled: nn.Module,
    insertions: Iterable[Insertion],
    built: dict[str, nn.ModuleDict],
    layouts: Mapping[Site, Layout],
) -> dict[str, list[Edit]]:
    """Returns the edits of each module by its path, and adds the routers of stacks to what is `built`."""
    edits: dict[str, list[Edit]] = {}
    in_front: dict[Site, list[tuple[Insertion, Tensor]]] = {}
    routed: dict[Stack, list[tuple[Insertion, Router]]] = {}
    types = types_in(compiled)
    for insertion in insertions:
        site, module = insertion.site, built[insertion.site.path][insertion.name]
        if insertion.wiring is Wiring.EXTEND_INPUT:
            in_front.setdefault(site, []).append((insertion, module()))
        else:
            casts = differs(module, compiled.get_submodule(site.path), types)
            edit = Edit(insertion.name, insertion.wiring, layouts[site].place, casts, layouts[site].spread)
            edits.setdefault(site.path, []).append(edit)
        if insertion.wiring is Wiring.ROUTED and site.stack is not None:
            routed.setdefault(site.stack, []).append((insertion, router_in(module)))
    for site, members in in_front.items():
        for path, edit in edits_of(members, compiled.get_submodule(site.path)):
            edits.setdefault(path, []).append(edit)
    # Last: what changes the arguments of a call changes those of both runs.
    for path, edit, routers in edits_of_stacks(compiled, routed):
        if routers:
            built.setdefault(path, nn.ModuleDict()).update(routers)
        edits.setdefault(path, []).append(edit)
    return edits


def _start_at_words(
    base: nn.Module,
    plan: Plan,
    built: Mapping[str, nn.ModuleDict],
    example_inputs: Mapping[str, Any],
    layouts: Mapping[Site, Layout],
) -> None:
    """Sets what starts at the keys and values that the base computes for words."""
    texts: dict[tuple[int, ...], list[Insertion]] = {}
    for insertion in plan.insertions:
        if insertion.method.words is not None and not any(tensor.is_meta for tensor in base.parameters()):
            texts.setdefault(insertion.method.words, []).append(insertion)
    for words, insertions in texts.items():
        sites = [insertion.site for insertion in insertions]
        found = observe(base, sites, words, example_inputs, layouts)
        for insertion, (keys, values) in zip(insertions, found, strict=True):
            module = built[insertion.site.path][insertion.name]
            assert isinstance(module, StartsAtWords)
            module.start_at(keys, values)


def _flavour(compiled: nn.Module, path: str, edits: list[Edit]) -> Flavour:
    fused = _is_fused(compiled.get_submodule(path))
    edits = [edit for edit in edits if not isinstance(edit.place, Carrier)]
    if not edits:
        return Flavour.INSIDE if fused else Flavour.KEPT
    of_call = any(edit.of_call for edit in edits)
    if all(edit.around for edit in edits):
        return Flavour.BOTH if of_call and fused else Flavour.AROUND
    if any(edit.wiring is Wiring.REPLACE for edit in edits):
        name = type(compiled.get_submodule(path)).__name__
        raise LoweringError(f"{path}: {name} would be both rewritten inside and replaced")
    return Flavour.BOTH if of_call else Flavour.INSIDE


def _rewrite_fused_ancestors(compiled: nn.Module) -> None:
    """torch's own composite modules read children's weights in a fast path; traced, they call them."""
    for path, module in list(compiled.named_modules()):
        if (
            _is_fused(module)
            and not isinstance(module, Rewritten)
            and any(isinstance(below, Rewritten) for below in module.modules())
        ):
            rewrite(module, (), nearest_config(compiled, path), Flavour.INSIDE)


def _is_fused(module: nn.Module) -> bool:
    """Whether a module of torch's own may do more than call its children."""
    collects = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    from_torch = type(module).__module__.startswith("torch.nn.modules.")
    return from_torch and not collects and next(module.children(), None) is not None


def _rewrite_root(compiled: nn.Module) -> None:
    if not isinstance(compiled, Rewritten):
        rewrite(compiled, (), compiled.__dict__.get("config"), Flavour.KEPT)


def generator_for(path: str, seed: int) -> torch.Generator:
    """Returns a generator that depends on `seed` and `path` alone."""
    # Not hash(): it differs from one process to the next.
    material = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(material[:7], "big"))


def _check_count(compiled: nn.Module, plan: Plan) -> None:
    built = sum(parameter.numel() for parameter in compiled.parameters() if parameter.requires_grad)
    if built != plan.trainable:
        raise LoweringError(
            f"the plan promises {plan.trainable:,} trainable parameters, built were {built:,}"
        )
