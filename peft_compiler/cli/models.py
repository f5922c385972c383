"""From what a user calls a model to the model: a folder, a hub id or a bare config.json.

Everything here calls code that fails in its own ways on bad input; each failure leaves as
one `ModelError` that names the input and the reason.
"""

import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from peft_compiler.cli.quiet import quiet
from peft_compiler.errors import PeftCompilerError

LARGEST_CONFIG = 1_000_000
"""Bytes. A config is a few thousand; something larger is another file, and is not read."""


class ModelError(PeftCompilerError):
    """What the command line calls a model is none, or cannot be read."""


def build_on_meta(source: str) -> nn.Module:
    """Returns the model that `source` describes on the meta device: structure without weights.

    Raises:
        ModelError: The config is missing, unreadable, or of no architecture that transformers knows.
    """
    config = read_config(source)
    with one_error(f"'{source}' has a config that no model can be built from"), torch.device("meta"):
        return model_class(config, source)(config).eval()


def as_saved(model: nn.Module) -> torch.dtype:
    """Returns the type that a model's weights are saved in, by its config; float32 if that does not say."""
    dtype = getattr(model.config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load_weights(source: str) -> PreTrainedModel:
    """Returns the model that `source` holds, with its weights, in eval mode.

    Only safetensors files are read: nothing is unpickled.

    Raises:
        ModelError: There are no weights, or they are not those of the config.
    """
    if Path(source).is_file():
        raise ModelError(f"'{source}' has no weights", ["name the folder that holds them, or use `plan`"])
    config = read_config(source)
    with one_error(f"the weights of '{source}' cannot be loaded"):
        loaded: Any = model_class(config, source).from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True
        )
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(f"'{source}' lacks {len(missing)} weights that its config asks for", missing[:5])
    return model


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes a plain transformers model, config and safetensors, into `folder`.

    Raises:
        ModelError: The folder cannot be written.
    """
    assert isinstance(model, PreTrainedModel)
    with one_error(f"the model cannot be written to '{folder}'"):
        model.save_pretrained(folder)


def read_config(source: str) -> PretrainedConfig:
    """Returns the config of a folder, a config.json or a hub id.

    Raises:
        ModelError: There is none, it is larger than 1 MB, or transformers does not accept it.
    """
    with one_error(f"'{source}' has no config that transformers can read"):
        path = Path(source)
        if path.is_dir():
            path = path / "config.json"
            if not path.exists():
                raise ModelError(f"the folder '{source}' has no config.json")
        if not path.exists():
            must_be_on_the_hub(source)
            return AutoConfig.from_pretrained(source)
        if path.stat().st_size > LARGEST_CONFIG:
            raise ModelError(
                f"'{path}' is {path.stat().st_size:,} bytes: a config is at most {LARGEST_CONFIG:,}"
            )
        return AutoConfig.from_pretrained(path)


def must_be_on_the_hub(source: str) -> None:
    """Raises ModelError unless `source` is the id of a model in the hub's cache or on the hub.

    Asked once, before anything is downloaded: the download itself retries for half a minute
    when there is no network, and writes a warning each time.
    """
    with one_error(f"'{source}' is no file or folder here, and the hub did not give a model of that name"):
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            HfApi().model_info(source, timeout=10)


def model_class(config: PretrainedConfig, source: str) -> type[PreTrainedModel]:
    """Returns the class that a config names in `architectures`, or its bare model where it names none.

    Raises:
        ModelError: transformers has no such class.
    """
    if not config.architectures:
        return cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])
    name = config.architectures[0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ModelError(
            f"'{source}' asks for '{name}', which transformers {transformers.__version__} lacks",
            ["load the model in Python and call peft_compiler.compile on it: any PyTorch module will do"],
        )
    return found


@contextmanager
def one_error(summary: str) -> Generator[None]:
    """Turns whatever transformers or the hub raise within into one ModelError."""
    try:
        with quiet():
            yield
    except PeftCompilerError:
        raise
    # Any class at all: configs are checked by their authors' code, files by the file system and by parsers.
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
        raise ModelError(summary, [reason]) from error
