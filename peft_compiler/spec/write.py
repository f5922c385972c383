"""`to_sentence` and `to_yaml`: a `Spec` as text that reads back to an equal one."""

import json
import re
from typing import Any, TypeAlias

from peft_compiler.methods import Method, Wiring
from peft_compiler.spec.spec import Rule, Spec, Where
from peft_compiler.spec.terms import TERMS

BARE_WORD = re.compile(r"[a-zA-Z_][\w-]*")
BARE_YAML = re.compile(r"[a-zA-Z_][\w.-]*(?: \w+)*|\d+-\d+")
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
NOT_WORDS = ("true", "false", "none", "null", "yes", "no", "on", "off", "y", "n")
"""Text that looks like another value, here or in some dialect of YAML."""


Plain: TypeAlias = str | float | list["Plain"] | dict[str, "Plain"] | None
"""What JSON can hold."""


def to_sentence(spec: Spec) -> str:
    """Returns the sentence that says what `spec` says.

    >>> to_sentence(Spec(rules=(Rule(use={"lora": {"r": 4}}, where=Where(layers="0-5")),), train=("head",)))
    'lora r=4 of layers 0-5; train head'
    """
    train = [part if part in TERMS else quoted(part) for part in spec.train]
    statements = [*map(rule_sentence, spec.rules), *([f"train {', '.join(train)}"] if train else [])]
    return "; ".join([*statements, *([f"dtype {spec.dtype}"] if spec.dtype else [])])


def rule_sentence(rule: Rule) -> str:
    """Returns one rule as a sentence."""
    naming = "after" if set(rule.use.attaches.values()) == {Wiring.AFTER} else "on"
    clauses = [" ".join(clause) for clause in _clauses(rule.where, naming)]
    expect = [f"expect {rule.expect}"] if rule.expect is not None else []
    return " ".join([method_sentence(rule.use), *clauses, *expect])


def method_sentence(method: Method, sizes: bool = False) -> str:
    """Returns a method and its settings as a sentence says them, such as `lora r=16`.

    Args:
        method: The method.
        sizes: Whether to say whole numbers even where they are the default.
    """
    said = settings_of(method)
    if sizes:
        everything = method.model_dump(mode="json", exclude={"kind"})
        said = {name: value for name, value in everything.items() if name in said or type(value) is int}
    return " ".join([method.spoken[0], *(f"{name}={_said(value)}" for name, value in said.items())])


def settings_of(method: Method) -> dict[str, Any]:
    """Returns the plain values of the fields that are not at their defaults."""
    return method.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})


def selector_sentence(where: Where) -> str:
    """Returns a selector as it would stand in parentheses.

    >>> selector_sentence(Where(role="q", layers="0-5", not_=Where(tower="encoder")))
    'q of layers 0-5 except encoder'
    """
    (_, first), *others = _clauses(where, "on")
    opening = f"except {first}" if where == Where(not_=where.not_) else first
    return " ".join([opening, *(" ".join(clause) for clause in others)])


def _clauses(where: Where, naming: str) -> list[tuple[str, str]]:
    """Returns the preposition and the criterion of each clause."""
    clauses: list[tuple[str, str]] = []
    if where.role is not None:
        clauses.append((naming, ",".join(where.role)))
    if where.layers is not None:
        clauses.append(("of", _layers(where.layers)))
    if where.tower is not None:
        clauses.append(("in", ",".join(where.tower)))
    if where.attention is not None:
        clauses.append(("in", f"{where.attention} attention"))
    if where.path is not None:
        clauses.append(("at", quoted(where.path)))
    if where.type is not None:
        clauses.append(("of", f"type {quoted(where.type)}"))
    for word, parts in (("and", where.and_), ("or", where.or_)):
        if parts is not None:
            clauses.append(("in", f" {word} ".join(f"({selector_sentence(part)})" for part in parts)))
    if where.not_ is not None:
        clauses.append(("except", selector_sentence(where.not_)))
    return clauses


def _layers(layers: str) -> str:
    if found := re.fullmatch(r"(first|last) (\d+)", layers):
        return f"the {layers} layers" if int(found[2]) > 1 else f"the {found[1]} layer"
    return f"{layers} layer" if re.fullmatch(r"every \w+", layers) else f"layers {layers}"


def quoted(text: str) -> str:
    """Returns text between quotes, with a backslash only where it is needed.

    >>> print(quoted(r"/layers\\.[01]/"))
    "/layers\\.[01]/"
    """
    escaped = re.sub(r'\\(?=[nrt\\"]|$)|"', lambda found: "\\" + found[0], text)
    return '"' + escaped.replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t") + '"'


def _said(value: Plain) -> str:
    if isinstance(value, str):
        return value if BARE_WORD.fullmatch(value) and value.lower() not in NOT_WORDS else quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)}: {_said(inner)}" for key, inner in value.items()) + "}"
    return "none" if value is None else _number(value)


def to_yaml(spec: Spec) -> str:
    """Returns the YAML file that says what `spec` says.

    >>> print(to_yaml(Spec(rules=(Rule(use={"lora": {"r": 4}}, where=Where(role="q, v")),))), end="")
    version: 1
    rules:
      - use: {lora: {r: 4}}
        where: {role: [q, v]}
    """
    lines = [f"version: {spec.version}"]
    if spec.rules:
        lines.append("rules:")
    for rule in spec.rules:
        settings = settings_of(rule.use)
        use: Plain = {rule.use.kind: settings} if settings else rule.use.kind
        lines.append(f"  - use: {_flow(use)}")
        where = rule.where.model_dump(mode="json", exclude_defaults=True)
        if where:
            lines.append(f"    where: {_flow(_unlisted(where))}")
        if rule.expect is not None:
            lines.append(f"    expect: {rule.expect}")
    if spec.train:
        lines.append(f"train: {_flow(list(spec.train))}")
    if spec.dtype:
        lines.append(f"dtype: {spec.dtype}")
    return "\n".join([*lines, ""])


def _unlisted(where: dict[str, Any]) -> dict[str, Any]:
    """Returns a selector with single roles and towers out of their lists, as people write them."""
    plain = dict(where)
    for key in ("role", "tower"):
        if len(where.get(key, ())) == 1:
            [plain[key]] = where[key]
    for key in ("and", "or"):
        if key in where:
            plain[key] = [_unlisted(part) for part in where[key]]
    if "not" in where:
        plain["not"] = _unlisted(where["not"])
    return plain


def _flow(value: Plain) -> str:
    """Returns a value in YAML's flow style, which is JSON with bare words."""
    if isinstance(value, str):
        if BARE_YAML.fullmatch(value) and value.lower() not in NOT_WORDS:
            return value
        text = json.dumps(value, ensure_ascii=False)
        return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return _number(value)


def _number(value: float | None) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return json.dumps(int(value))
    return json.dumps(value)
