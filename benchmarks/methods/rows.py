"""What is compared: a sentence for each method, and the learning rates that it is tried with."""

from dataclasses import dataclass

from benchmarks.methods.training import HEAD_RATE

LOW = (1e-3, 4e-3, 1.6e-2)
HIGH = (2e-3, 8e-3, 3.2e-2)
"""For methods with few parameters, or whose parameters start at a scale of 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to adapt the encoder.

    Attributes:
        name: The method's kind or the recipe's name, with what sets it apart from another row of it.
        sentence: The spec, but for `train head`; `{frequent}` stands for token ids.
        family: What it has in common with others.
        rates: What is tried with the first seed.
    """

    name: str
    sentence: str
    family: str
    rates: tuple[float, ...] = LOW


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
    Row("vera", "VeRA on q,v", "frozen bases", HIGH),
    Row("randlora", "RandLoRA on q,v", "frozen bases", HIGH),
    Row("fourierft", "FourierFT on q,v", "frozen bases", HIGH),
    Row("adapter", "adapters after attention and FFN", "adapters"),
    Row("pfeiffer_adapter", "Pfeiffer adapters", "adapters"),
    Row("parallel_adapter", "parallel adapters", "adapters"),
    Row("compacter", "Compacter adapters after attention and FFN", "adapters"),
    Row("gated_adapter", "gated adapters", "adapters"),
    Row("invertible_adapter", "invertible adapter", "adapters"),
    Row("adapter_fusion", "adapter fusion adapters=[movies, products, tweets]", "adapters"),
    Row("x_lora", "X-LoRA adapters=[movies, products, tweets] on q,v", "low rank"),
    Row("prefix", "prefix", "keys and values"),
    Row("gated_prefix", "gated prefix", "keys and values"),
    Row("prefix without its MLP", "prefix reparametrised=false", "keys and values", HIGH),
    Row("p_tuning", "p-tuning", "input"),
    Row("deep_prompts", "deep prompts", "keys and values", HIGH),
    Row("deep_prompts at a scale of 0.1", "deep prompts scale=0.1", "keys and values", HIGH),
    Row("llama_adapter", "LLaMA-Adapter", "keys and values", HIGH),
    Row("prompt", "prompt", "input", HIGH),
    Row("trainable_tokens", "trainable tokens tokens={frequent}", "input", HIGH),
    Row("loreft", "LoReFT r=4", "states"),
    Row("direft", "DiReFT r=4", "states"),
    Row("ia3", "IA3", "scales and shifts", HIGH),
    Row("bitfit", "BitFit", "scales and shifts", HIGH),
    Row("ssf", "SSF", "scales and shifts", HIGH),
    # The recipe's width of 512 is half of BART-large's; here it would be no bottleneck.
    Row(
        "mam",
        "prefix length=30 width=800; parallel adapters width=192 activation=relu scale=4",
        "together",
        # With so many parameters, prefix and adapters together, the others are too high.
        (2.5e-4, *LOW),
    ),
    Row("unipelt", "UniPELT", "together"),
)

HEAD_ALONE = Row("trained_copy", "", "head", (HEAD_RATE,))
"""The head is trained with every method, so that it alone is what they are compared with."""
