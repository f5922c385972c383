"""What is compared: a sentence for each method, and the learning rates that its family may have."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Methods that learn at one rate.

    Attributes:
        rates: What is tried on the validation sentences.
        representative: The row that it is tried with.
    """

    rates: tuple[float, ...]
    representative: str


LOW = (1e-3, 4e-3)
HIGH = (8e-3, 3.2e-2)
"""For methods with few parameters, or whose parameters start at a scale of 1."""

FAMILIES: Mapping[str, Family] = {
    "low rank": Family(LOW, "lora"),
    "rotations": Family(LOW, "oft"),
    "frozen bases": Family(HIGH, "vera"),
    "adapters": Family(LOW, "adapter"),
    "given by a network": Family(LOW, "prefix"),
    "keys and values": Family(HIGH, "deep_prompts"),
    "input": Family((2e-3, *HIGH), "prompt"),
    "states": Family(LOW, "loreft"),
    "scales and shifts": Family(HIGH, "ia3"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One way to adapt the encoder.

    Attributes:
        name: The method's kind or the recipe's name, with what sets it apart from another row of it.
        sentence: The spec, but for `train head`; `{frequent}` stands for token ids.
        family: Where its learning rate comes from.
    """

    name: str
    sentence: str
    family: str


ROWS: tuple[Row, ...] = (
    Row("lora", "LoRA r=8 on q,v", "low rank"),
    Row("dora", "DoRA r=8 on q,v", "low rank"),
    Row("adalora", "AdaLoRA r=12 target_r=8 on q,v", "low rank"),
    Row("gated_lora", "gated LoRA r=8 on q,v", "low rank"),
    Row("loha", "LoHa r=8 on q,v", "low rank"),
    Row("lokr", "LoKr r=8 on q,v", "low rank"),
    Row("miss", "MiSS r=8 on q,v", "low rank"),
    Row("oft", "OFT on q,v", "rotations"),
    Row("boft", "BOFT on q,v", "rotations"),
    Row("hra", "HRA r=8 on q,v", "rotations"),
    Row("vera", "VeRA on q,v", "frozen bases"),
    Row("randlora", "RandLoRA on q,v", "frozen bases"),
    Row("fourierft", "FourierFT on q,v", "frozen bases"),
    Row("adapter", "adapters after attention and FFN", "adapters"),
    Row("pfeiffer_adapter", "Pfeiffer adapters", "adapters"),
    Row("parallel_adapter", "parallel adapters", "adapters"),
    Row("compacter", "Compacter adapters after attention and FFN", "adapters"),
    Row("gated_adapter", "gated adapters", "adapters"),
    Row("invertible_adapter", "invertible adapter", "adapters"),
    Row("adapter_fusion", "adapter fusion adapters=[movies, products, tweets]", "adapters"),
    Row("prefix", "prefix", "given by a network"),
    Row("prefix without its MLP", "prefix reparametrised=false", "keys and values"),
    Row("p_tuning", "p-tuning", "given by a network"),
    Row("deep_prompts", "deep prompts", "keys and values"),
    Row("deep_prompts at a scale of 0.1", "deep prompts scale=0.1", "keys and values"),
    Row("llama_adapter", "LLaMA-Adapter", "keys and values"),
    Row("prompt", "prompt", "input"),
    Row("trainable_tokens", "trainable tokens tokens={frequent}", "input"),
    Row("loreft", "LoReFT r=4", "states"),
    Row("direft", "DiReFT r=4", "states"),
    Row("ia3", "IA3", "scales and shifts"),
    Row("bitfit", "BitFit", "scales and shifts"),
    Row("ssf", "SSF", "scales and shifts"),
    # The recipe's width of 512 is half of BART-large's; here it would be no bottleneck.
    Row("mam", "deep prompts length=30; parallel adapters width=192 activation=relu scale=4", "adapters"),
    Row("unipelt", "UniPELT", "adapters"),
)

HEAD_ALONE = Row("trained_copy", "", "adapters")
"""The head is trained with every method, so that it alone is what they are compared with."""
