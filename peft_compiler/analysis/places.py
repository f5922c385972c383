"""Where exactly a projection or a table stands: which parameter of which module, applied by which op."""

from dataclasses import dataclass, replace

from torch import fx

from peft_compiler.analysis.module_graph import ModuleGraph, fact
from peft_compiler.analysis.ops import CASTS, SHAPES, kind
from peft_compiler.analysis.roles.embeddings_and_heads import Lookup
from peft_compiler.analysis.roles.fused_rows import RowProbe, find_layout
from peft_compiler.analysis.roles.linears import Dataflow, Linear
from peft_compiler.site import Anchor, Projection, Rows

_REARRANGING = SHAPES | CASTS


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter where it is applied.

    Attributes:
        path: The module in whose forward.
        place: How, with the rows that the op uses.
        shape: Shape of the parameter.
        width_in: Features in.
        width_out: Features out, of the rows that the op uses.
    """

    path: str
    place: Projection
    shape: tuple[int, ...]
    width_in: int
    width_out: int

    def place_of(self, used: Rows | None) -> Projection:
        """Returns the place of some rows of the op's output, given as rows of the parameter; None for all."""
        if used is None:
            return self.place
        own = self.place.rows
        if own is None:
            return replace(self.place, rows=used)
        indices = own.indices
        return replace(self.place, rows=Rows.of((indices[row] for row in used.indices), own.total))


def matrix_of_linear(flow: Dataflow, linear: Linear, probe: RowProbe) -> Matrix | None:
    """Returns where the weight of a linear stands; None where it is computed from several."""
    layout = find_layout(flow, linear, probe)
    if layout is None:
        return None
    path = fact(linear.node).module
    bias = _bias_name(flow, linear, path)
    anchor = None if _stands_alone(flow, linear.node, linear.data) else fact(linear.node).anchor
    name = _name(flow.graph, layout.parameter, path)
    place = Projection(
        name,
        layout.form,
        layout.rows,
        anchor,
        bias,
        layout.axes,
        applied=layout.rows,
        quantised=_is_quantised(flow.graph, layout.parameter),
    )
    width_out = layout.width_out if layout.rows is None else len(layout.rows)
    return Matrix(path, place, fact(layout.parameter).shape, layout.width_in, width_out)


def matrix_of_lookup(flow: Dataflow, lookup: Lookup) -> Matrix:
    """Returns where the table of a lookup stands."""
    path = fact(lookup.node).module
    anchor: Anchor | None = fact(lookup.node).anchor
    if _stands_alone(flow, lookup.node, lookup.index):
        anchor = None
    entries, width = fact(lookup.table).shape
    quantised = _is_quantised(flow.graph, lookup.table)
    name = _name(flow.graph, lookup.table, path)
    place = Projection(name, "embedding", None, anchor, quantised=quantised)
    return Matrix(path, place, (entries, width), entries, width)


def _is_quantised(graph: ModuleGraph, parameter: fx.Node) -> bool:
    return not graph.quantised.isdisjoint(graph.parameters[parameter])


def _name(graph: ModuleGraph, parameter: fx.Node, path: str) -> str:
    """Returns the name of a parameter within the module at `path`, or in the model if it lies elsewhere."""
    prefix = f"{path}." if path else ""
    names = graph.parameters[parameter]
    return next((name.removeprefix(prefix) for name in names if name.startswith(prefix)), names[0])


def _bias_name(flow: Dataflow, linear: Linear, path: str) -> str | None:
    bias = linear.bias or _added_bias(flow, linear.node)
    bases = (
        []
        if bias is None
        else [base for base in flow.taint.bases.get(bias, ()) if len(fact(base).shape) == 1]
    )
    return _name(flow.graph, bases[0], path) if len(bases) == 1 else None


def _added_bias(flow: Dataflow, node: fx.Node) -> fx.Node | None:
    """Returns what is added to a matrix product, where that is a parameter of the same module."""
    for user in flow.active_users[node]:
        if kind(user) == "add" and fact(user).module == fact(node).module:
            return next((operand for operand in user.all_input_nodes if operand in flow.taint.bases), None)
    return None


def _stands_alone(flow: Dataflow, node: fx.Node, data: fx.Node) -> bool:
    """Whether the module in which `node` stands does nothing else: data in, this op, its result out."""
    path = fact(node).module
    if flow.graph.modules[path].children:
        return False
    calls = (
        call
        for call in flow.graph.calls.get(path, ())
        if call.inputs and call.outputs and call.returns_tensor
    )
    return any(
        _unshaped(flow, call.outputs[0], node) is node
        and _unshaped(flow, data, call.inputs[0]) is call.inputs[0]
        for call in calls
    )


def _unshaped(flow: Dataflow, value: fx.Node, end: fx.Node) -> fx.Node:
    """Returns what `value` is up to shape, type and an added parameter, no farther back than `end`."""
    while value is not end and value.op == "call_function":
        sources = [source for source in value.all_input_nodes if source not in flow.taint.bases]
        adds_a_parameter = kind(value) == "add" and len(value.all_input_nodes) == 2
        if len(sources) != 1 or not (adds_a_parameter or kind(value) in _REARRANGING):
            break
        value = sources[0]
    return value
