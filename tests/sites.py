"""Sites written by hand: what `find_sites` would return for small models."""

from peft_compiler.site import Anchor, Core, Edge, Projection, Role, Rows, Site, Tower, Whole

HIDDEN, INNER, ENTRIES = 64, 256, 99
ANCHOR = Anchor((("forward", 0),), "add")


def projection(role: Role, path: str, inner: int, outer: int, layer: int, **facets: object) -> Site:
    """Returns the site of a linear module."""
    place = Projection("weight", "linear")
    return Site(role, path, place, inner, outer, layer, shape=(outer, inner), module_type="Linear", **facets)


def attention(path: str, block: str, layer: int, **facets: object) -> list[Site]:
    """Returns the sites of an attention with 4 query heads and 2 key heads, 16 wide."""
    names = {Role.QUERY: "q", Role.KEY: "k", Role.VALUE: "v", Role.ATTENTION_OUTPUT: "o"}
    sites = [
        projection(role, f"{path}.{name}_proj", HIDDEN, HIDDEN, layer, **facets)
        for role, name in names.items()
    ]
    core, edge = Core(ANCHOR, 4, 2, 16, 16), Edge(ANCHOR, 1)
    sites.append(
        Site(Role.ATTENTION_CORE, path, core, HIDDEN, HIDDEN, layer, module_type="Attention", **facets)
    )
    sites.append(Site(Role.ATTENTION, block, edge, HIDDEN, HIDDEN, layer, module_type="Block", **facets))
    return sites


def block(path: str, layer: int, tower: Tower | None = None, cross: bool = False) -> list[Site]:
    """Returns the sites of a block without a gate, with or without cross-attention."""
    sites = attention(f"{path}.attention", path, layer, tower=tower)
    if cross:
        sites += attention(f"{path}.cross", path, layer, tower=tower, cross=True)
    edge = Edge(ANCHOR, 1)
    return [
        *sites,
        projection(Role.UP, f"{path}.mlp.up", HIDDEN, INNER, layer, tower=tower),
        projection(Role.DOWN, f"{path}.mlp.down", INNER, HIDDEN, layer, tower=tower),
        Site(Role.FEED_FORWARD, path, edge, HIDDEN, HIDDEN, layer, tower, module_type="Block"),
        Site(Role.NORM, f"{path}.norm", Whole(128), HIDDEN, HIDDEN, layer, tower, module_type="LayerNorm"),
    ]


def decoder() -> tuple[Site, ...]:
    """Returns the sites of a decoder with 4 layers, an embedding and a head."""
    embedding = Projection("weight", "embedding")
    head = Projection("weight", "linear")
    return (
        Site(Role.EMBEDDING, "model.embed", embedding, ENTRIES, HIDDEN, shape=(ENTRIES, HIDDEN)),
        *(site for layer in range(4) for site in block(f"model.layers.{layer}", layer)),
        Site(Role.HEAD, "lm_head", head, HIDDEN, ENTRIES, shape=(ENTRIES, HIDDEN)),
    )


def encoder_decoder() -> tuple[Site, ...]:
    """Returns the sites of an encoder with 6 layers and a decoder with 4."""
    encoder = [block(f"encoder.layers.{layer}", layer, Tower.ENCODER) for layer in range(6)]
    decoder = [block(f"decoder.layers.{layer}", layer, Tower.DECODER, cross=True) for layer in range(4)]
    return tuple(site for sites in (*encoder, *decoder) for site in sites)


def fused() -> tuple[Site, ...]:
    """Returns the query and value rows of two transposed projections of queries, keys and values."""
    thirds = {
        Role.QUERY: Rows.of(range(HIDDEN), 3 * HIDDEN),
        Role.VALUE: Rows.of(range(2 * HIDDEN, 3 * HIDDEN), 3 * HIDDEN),
    }
    shape = (HIDDEN, 3 * HIDDEN)
    return tuple(
        Site(
            role,
            f"h.{layer}.qkv",
            Projection("weight", "transposed", rows),
            HIDDEN,
            HIDDEN,
            layer,
            shape=shape,
        )
        for layer in range(2)
        for role, rows in thirds.items()
    )
