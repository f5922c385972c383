"""`read_spec`: whatever a user wrote, to `Spec`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_compiler.errors import SpecError
from peft_compiler.spec.documents import Dictionary, Document
from peft_compiler.spec.files import read_json, read_yaml
from peft_compiler.spec.problems import validated
from peft_compiler.spec.sentence import read_sentence
from peft_compiler.spec.spec import Spec

READERS = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}
LARGEST = 1_000_000
"""Bytes of a file, or characters of a sentence, that are still read."""


def read_spec(source: Spec | Mapping[str, Any] | Path | str) -> Spec:
    """Returns the spec that a file, sentence or dict holds; a `Spec` as it is.

    A string is a file if one of that name exists or it ends like one, else a sentence.

    Raises:
        SpecError: If it is none; every problem is listed with its place.

    >>> read_spec("LoRA on q,v") == read_spec({"rules": [{"use": "lora", "where": {"role": "q, v"}}]})
    True
    """
    if isinstance(source, Spec):
        return source
    return validated(_document(source))


def _document(source: object) -> Document:
    if isinstance(source, Mapping):
        return Dictionary("the dict", source)
    if isinstance(source, Path):
        return _file(source)
    if not isinstance(source, str):
        kind = type(source).__name__
        raise SpecError(f"found a value of type {kind}, expected a sentence, a path, a dict or a Spec")
    if _names_a_file(source):
        return _file(Path(source))
    if len(source) > LARGEST:
        raise SpecError(f"the sentence has {len(source):,} characters, expected at most {LARGEST:,}")
    return read_sentence(source)


def _names_a_file(text: str) -> bool:
    if "\n" in text or ";" in text or "\0" in text:
        return False
    try:
        return Path(text).suffix.lower() in READERS or Path(text).is_file()
    except OSError:  # A sentence may be longer than the name of a file.
        return False


def _file(path: Path) -> Document:
    name = str(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise SpecError(f"{name} is no spec file: expected a name that ends in {', '.join(READERS)}")
    if not path.is_file():
        found = "a folder or device" if path.exists() else "nothing"
        raise SpecError(f"found {found} at {name}, expected a spec file; check the path")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise SpecError(f"{name} has {size:,} bytes, expected at most {LARGEST:,}; is it a spec?")
        return read(path.read_text(encoding="utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise SpecError(f"{name} is not UTF-8 text: found a bad byte at offset {error.start:,}") from None
    except OSError as error:
        raise SpecError(f"{name} cannot be read: {error.strerror}") from None
