"""Texts and pairs of letters, and TRL's trainers of small language models on them."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.citizen.learning import QUIET

TEXTS = [{"text": "a b c d e f g h"}, {"text": "b c d e f g h i j"}] * 8
PAIRS = [{"prompt": "a b c ", "chosen": "d e f", "rejected": "x y"}] * 16


def tokenizer() -> PreTrainedTokenizerFast:
    """Returns one whose words are letters."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = {word: number for number, word in enumerate([*special.values(), *map(chr, range(97, 123))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Returns settings for a run of seconds."""
    shared = {"output_dir": str(folder), "max_steps": 5, "learning_rate": 0.02, "logging_steps": 1}
    few = {"per_device_train_batch_size": 4, "save_strategy": "no", "max_length": 16, "bf16": False}
    return {**shared, **few, **QUIET, **more}


def fine_tuning(tuned: Any, folder: Path, **more: Any) -> SFTTrainer:
    """Returns the trainer of a language model on texts."""
    arguments = SFTConfig(**settings(folder, **more))
    return SFTTrainer(tuned, arguments, train_dataset=Dataset.from_list(TEXTS), processing_class=tokenizer())


def preferring(tuned: Any, reference: Any, folder: Path) -> DPOTrainer:
    """Returns the trainer of a language model on pairs, one of which is preferred."""
    arguments = DPOConfig(**settings(folder))
    data = Dataset.from_list(PAIRS)
    return DPOTrainer(tuned, reference, arguments, train_dataset=data, processing_class=tokenizer())
