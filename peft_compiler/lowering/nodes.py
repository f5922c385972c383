"""How one node of a local graph takes the place of another, and how edits that come later know."""

from torch.fx import Node


def take_over(old: Node, new: Node) -> None:
    """Hands every user of `old` except what leads to `new` over to `new`."""
    between = {new, *ancestors_after(old, new)}
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in between, propagate_meta=False)
    new.meta.update({key: old.meta[key] for key in ("shape", "dtype") if key in old.meta})
    old.meta["replaced_by"] = new


def current(node: Node) -> Node:
    """Returns what stands for the output of `node` after earlier edits."""
    while "replaced_by" in node.meta:
        node = node.meta["replaced_by"]
    return node


def ancestors_after(old: Node, new: Node) -> set[Node]:
    """Nodes between `old` and `new` on which `new` depends."""
    found: set[Node] = set()
    todo = [new]
    while todo:
        for node in todo.pop().all_input_nodes:
            if node is not old and node not in found and old < node:
                found.add(node)
                todo.append(node)
    return found
