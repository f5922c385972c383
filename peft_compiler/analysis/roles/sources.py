"""What flows into a sub-layer, and which norm its output goes into, as the module that joins them sees it."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from torch import fx

from peft_compiler.analysis.module_graph import Call, fact
from peft_compiler.analysis.ops import tensors
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.analysis.roles.residuals import is_computed_from, source_of
from peft_compiler.site import Anchor, Source


def find_source(flow: Dataflow, op: fx.Node, entry: Linear, width: int) -> tuple[Source, fx.Node] | None:
    """Returns where the data of `entry`, the first projection of a sub-layer, can be had beside `op`; and it.

    That is the module or op, in the forward that holds `op`, by which the data enters the
    sub-layer; or `op` itself, where it takes the data too, as an attention whose keys are its input. None
    where that forward does not see the data, or sees it in another width than is expected.
    """
    within = fact(op).module
    if fact(entry.node).module == within:
        source = Source(_anchor(entry.node), tensors(entry.node).index(entry.data))
        return _if_as_wide(entry.data, width, source)
    child = _called_child(flow, within, fact(entry.node).module)
    if child is not None:
        call = call_around(flow.graph.calls[child], entry.node)
        for index, value in enumerate(call.inputs):
            if value in flow.taint.activations and is_computed_from(flow, value, entry.data):
                path = child.removeprefix(f"{within}." if within else "")
                return _if_as_wide(value, width, Source(path, index))
    for index, operand in enumerate(tensors(op)):
        if source_of(flow, operand) is source_of(flow, entry.data):
            return Source(_anchor(op), index), operand
    return None


def find_stream(flow: Dataflow, add: fx.Node, origin: fx.Node, value: fx.Node) -> Source | None:
    """Returns where the stream that a branch left at `origin` can be had beside the add that joins `value`.

    That is what the sub-layer is given, before any norm of its own. None where the forward that
    adds does not see it in the shape of what it adds.
    """
    for node in _alike(flow, origin):
        if fact(node).shape != fact(value).shape:
            continue
        for user in flow.active_users.get(node, ()):
            if (taker := _taker(flow, fact(add).module, user, node)) is not None:
                return taker
    return None


def _alike(flow: Dataflow, origin: fx.Node) -> Iterator[fx.Node]:
    """Yields `origin`, and then what is the same up to its shape, type, and constant scale and shift."""
    queue = deque([origin])
    while queue:
        node = queue.popleft()
        yield node
        queue.extend(user for user in flow.active_users.get(node, ()) if source_of(flow, user) is origin)


def _taker(flow: Dataflow, within: str, user: fx.Node, value: fx.Node) -> Source | None:
    """Returns what takes `value` as the forward of `within` sees it: the op `user`, or its module."""
    if fact(user).module == within:
        return Source(_anchor(user), tensors(user).index(value))
    child = _called_child(flow, within, fact(user).module)
    if child is None:
        return None
    inputs = call_around(flow.graph.calls[child], user).inputs
    path = child.removeprefix(f"{within}." if within else "")
    return Source(path, inputs.index(value)) if value in inputs else None


def find_norm_behind(flow: Dataflow, add: fx.Node, norms: Collection[str]) -> str | None:
    """Returns the path, within the module that holds `add`, of the norm that its sum goes into.

    None where the sum goes anywhere else too, or into none of the `norms` that stand there.
    """
    within = fact(add).module
    prefix = f"{within}." if within else ""
    users = {fact(user).module for user in flow.active_users[add]}
    if len(users) != 1:
        return None
    (path,) = users
    enters = any(add in call.inputs for call in flow.graph.calls.get(path, ()))
    is_below = path != within and path.startswith(prefix)
    return path.removeprefix(prefix) if is_below and enters and path in norms else None


def _called_child(flow: Dataflow, within: str, path: str) -> str | None:
    """Returns the module that the forward of `within` calls on its way to the one at `path`."""
    prefix = f"{within}." if within else ""
    if not path.startswith(prefix):
        return None
    names = path.removeprefix(prefix).split(".")
    around = (prefix + ".".join(names[:length]) for length in range(1, len(names) + 1))
    return next((name for name in around if name in flow.graph.calls), None)


def call_around(calls: Sequence[Call], node: fx.Node) -> Call:
    """Returns the call of a module, of all its calls, in which an op ran."""
    return next(
        call for call in calls if any(fact(output).order >= fact(node).order for output in call.outputs)
    )


def _if_as_wide(value: fx.Node, width: int, source: Source) -> tuple[Source, fx.Node] | None:
    return (source, value) if fact(value).shape[-1:] == (width,) else None


def _anchor(node: fx.Node) -> Anchor:
    anchor = fact(node).anchor
    assert anchor is not None, "only inputs and parameters have no anchor"
    return anchor
