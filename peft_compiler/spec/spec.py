"""`Spec`: which method goes where, as the user wrote it."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    field_serializer,
    model_serializer,
    model_validator,
)

from peft_compiler.methods import Method, TrainedCopy
from peft_compiler.registering import known_methods
from peft_compiler.site import SHORT_NAMES, Tower
from peft_compiler.spec.layers import canonical_layers
from peft_compiler.spec.paths import compiled_pattern
from peft_compiler.spec.terms import ALSO_CALLED, TERMS, did_you_mean, one_of, split_words, term_of


def _term(word: str) -> str:
    term = term_of(word)
    if term is None:
        suggestion = did_you_mean(word, [*TERMS, *ALSO_CALLED])
        raise ValueError(f"found role '{word}', expected {one_of(SHORT_NAMES)}, or a full name{suggestion}")
    return term


def _pattern(text: str) -> str:
    compiled_pattern(text)
    return text


def _says_something(where: "Where") -> "Where":
    if where == Where():
        raise ValueError("found an empty selector, which selects everything; expected at least one criterion")
    return where


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not items:
        raise ValueError("found an empty list; leave the key out to select everything")
    return tuple(dict.fromkeys(items))


Term = Annotated[str, AfterValidator(_term)]
Terms = Annotated[tuple[Term, ...], BeforeValidator(split_words), AfterValidator(_distinct)]
AnyTower = Annotated[Tower, BeforeValidator(_lower)]
Towers = Annotated[tuple[AnyTower, ...], BeforeValidator(split_words), AfterValidator(_distinct)]
Part = Annotated["Where", AfterValidator(_says_something)]


class _Written(BaseModel, frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True):
    """What a user wrote; it is printed without what was left out."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if name is None or value != type(self).model_fields[name].get_default(call_default_factory=True):
                yield name, value


class Where(_Written, frozen=True):
    """Selects sites. Every criterion given must hold; one left out holds everywhere.

    A rule that names no role, path or type stands where its method does by default; one
    that names a path or type but no role stands wherever its method attaches there.

    >>> Where(role="q, v", layers="last 4").layers
    'last 4'
    """

    role: Terms | None = Field(default=None, description="Short or full names of roles.")
    layers: Annotated[str | None, BeforeValidator(canonical_layers)] = Field(
        default=None, description="Layers of a tower, counted from 0."
    )
    tower: Towers | None = Field(default=None, description="Parts of the model.")
    attention: Annotated[Literal["self", "cross", "any"], BeforeValidator(_lower)] | None = Field(
        default=None, description="Which kind of attention the place belongs to."
    )
    path: Annotated[str, AfterValidator(_pattern)] | None = Field(
        default=None, description="Glob of module paths, or a regular expression between slashes."
    )
    type: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Glob of module class names."
    )
    and_: Annotated[tuple[Part, ...], Field(min_length=2)] | None = Field(
        default=None, validation_alias="and", serialization_alias="and", description="All of these hold too."
    )
    or_: Annotated[tuple[Part, ...], Field(min_length=2)] | None = Field(
        default=None, validation_alias="or", serialization_alias="or", description="One of these holds too."
    )
    not_: Part | None = Field(
        default=None, validation_alias="not", serialization_alias="not", description="This does not hold."
    )

    @property
    def parts(self) -> Iterator["Where"]:
        """This selector and all within it, what it excludes too."""
        yield self
        for part in (*(self.and_ or ()), *(self.or_ or ()), *((self.not_,) if self.not_ else ())):
            yield from part.parts


def spell_out(use: str | Mapping[str, str | float | Mapping[str, Any] | None] | Method) -> object:
    """Returns the long form of a method: `lora` and `{lora: {r: 8}}` are `{kind: lora, r: 8}`."""
    if isinstance(use, str):
        return {"kind": use}
    if isinstance(use, Mapping) and len(use) == 1 and "kind" not in use:
        [(kind, settings)] = use.items()
        if settings is None:
            return {"kind": kind}
        if isinstance(settings, Mapping) and "kind" not in settings:
            return {"kind": kind, **settings}
    return use


@cache
def _reader(methods: tuple[type[Method], ...]) -> TypeAdapter[Method]:
    union: Any = reduce(or_, methods)
    # No type checker can know a union that is made of what is registered.
    known: Any = Annotated[union, Field(discriminator="kind")]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(known)


def _known(use: object) -> Method:
    return _reader(known_methods()).validate_python(use)


# Not a union of classes: which methods there are is asked when a spec is read.
AnyMethod = Annotated[SerializeAsAny[Method], PlainValidator(_known)]


class Rule(_Written, frozen=True):
    """Attaches one method to every selected site."""

    use: Annotated[AnyMethod, BeforeValidator(spell_out)]
    where: Where = Field(default_factory=Where)
    expect: Annotated[int, Field(gt=0, strict=True)] | None = Field(
        default=None, description="Number of sites that it must select."
    )

    @field_serializer("use", mode="wrap")
    def _keep_kind(self, use: Method, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The kind is a default of its class, yet a method is not read back without it.
        return {"kind": use.kind, **write(use)}


def _trained_part(part: str) -> str:
    term = term_of(part)
    if term is None:
        return _pattern(part)
    if TERMS[term].isdisjoint(TrainedCopy.attaches):
        trainable = one_of(sorted(TrainedCopy.attaches))
        raise ValueError(f"found '{part}', which no copy can replace; expected {trainable}, or a path")
    return term


TrainedPart = Annotated[str, AfterValidator(_trained_part)]


class Spec(_Written, frozen=True):
    """A whole adaptation. Rules apply in order."""

    version: Literal[1] = 1
    rules: tuple[Rule, ...] = ()
    train: Annotated[tuple[TrainedPart, ...], BeforeValidator(split_words)] = Field(
        default=(), description="Parts of the base trained as inserted copies: roles, or globs of paths."
    )

    dtype: Annotated[Literal["float32", "bfloat16", "float16"], BeforeValidator(_lower)] | None = Field(
        default=None,
        description="In which type the inserted parameters are kept; that of the weights beside them if not "
        "given, but no less precise than float32.",
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.all_rules:
            example = "such as `LoRA on q,v` or `rules: [{use: lora}]`"
            raise ValueError(f"found neither rules nor parts to train; a spec needs one, {example}")
        return self

    @model_serializer(mode="wrap")
    def _keep_version(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is written today must not be read as a later version, whose default is another.
        return {"version": self.version, **write(self)}

    def tokenized(self, tokenizer: Any) -> Self:
        """Returns this spec with the token ids of every text in it filled in."""
        return self._using(lambda method: method.tokenized(tokenizer))

    def settled(self) -> Self:
        """Returns what is left of this spec once training is over."""
        return self._using(lambda method: method.settled())

    def _using(self, change: Callable[[Method], Method]) -> Self:
        rules = (rule.model_copy(update={"use": change(rule.use)}) for rule in self.rules)
        return self.model_copy(update={"rules": tuple(rules)})

    @property
    def towers(self) -> frozenset[Tower]:
        """Every part of a model that a rule names."""
        parts = (part for rule in self.rules for part in rule.where.parts)
        return frozenset(tower for part in parts for tower in part.tower or ())

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules, then each part to train as a rule of its own."""
        trained = (Where(role=(part,)) if part in TERMS else Where(path=part) for part in self.train)
        return (*self.rules, *(Rule(use=TrainedCopy(), where=where) for where in trained))
