"""The PEFT methods. To add one: write its file, then add its class to `METHODS`."""

from peft_compiler.methods._method import MergeRule as MergeRule
from peft_compiler.methods._method import Method as Method
from peft_compiler.methods._method import NoMerge as NoMerge
from peft_compiler.methods._method import Wiring as Wiring
from peft_compiler.methods.adalora import AdaLoRA as AdaLoRA
from peft_compiler.methods.adapter import Adapter as Adapter
from peft_compiler.methods.adapter_fusion import AdapterFusion as AdapterFusion
from peft_compiler.methods.bitfit import BitFit as BitFit
from peft_compiler.methods.boft import BOFT as BOFT
from peft_compiler.methods.compacter import Compacter as Compacter
from peft_compiler.methods.deep_prompts import DeepPrompts as DeepPrompts
from peft_compiler.methods.direft import DiReFT as DiReFT
from peft_compiler.methods.dora import DoRA as DoRA
from peft_compiler.methods.fourierft import FourierFT as FourierFT
from peft_compiler.methods.gated_adapter import GatedAdapter as GatedAdapter
from peft_compiler.methods.gated_lora import GatedLoRA as GatedLoRA
from peft_compiler.methods.gated_prefix import GatedPrefix as GatedPrefix
from peft_compiler.methods.hra import HRA as HRA
from peft_compiler.methods.ia3 import IA3 as IA3
from peft_compiler.methods.invertible_adapter import InvertibleAdapter as InvertibleAdapter
from peft_compiler.methods.llama_adapter import LLaMAAdapter as LLaMAAdapter
from peft_compiler.methods.loha import LoHa as LoHa
from peft_compiler.methods.lokr import LoKr as LoKr
from peft_compiler.methods.lora import LoRA as LoRA
from peft_compiler.methods.loreft import LoReFT as LoReFT
from peft_compiler.methods.miss import MiSS as MiSS
from peft_compiler.methods.oft import OFT as OFT
from peft_compiler.methods.p_tuning import PTuning as PTuning
from peft_compiler.methods.parallel_adapter import ParallelAdapter as ParallelAdapter
from peft_compiler.methods.pfeiffer_adapter import PfeifferAdapter as PfeifferAdapter
from peft_compiler.methods.prefix import Prefix as Prefix
from peft_compiler.methods.prompt import Prompt as Prompt
from peft_compiler.methods.randlora import RandLoRA as RandLoRA
from peft_compiler.methods.ssf import SSF as SSF
from peft_compiler.methods.trainable_tokens import TrainableTokens as TrainableTokens
from peft_compiler.methods.trained_copy import TrainedCopy as TrainedCopy
from peft_compiler.methods.vera import VeRA as VeRA
from peft_compiler.methods.x_lora import XLoRA as XLoRA

METHODS: tuple[type[Method], ...] = (
    AdaLoRA,
    Adapter,
    AdapterFusion,
    BitFit,
    BOFT,
    Compacter,
    DeepPrompts,
    DiReFT,
    DoRA,
    FourierFT,
    GatedAdapter,
    GatedLoRA,
    GatedPrefix,
    HRA,
    IA3,
    InvertibleAdapter,
    LLaMAAdapter,
    LoHa,
    LoKr,
    LoRA,
    LoReFT,
    MiSS,
    OFT,
    ParallelAdapter,
    PfeifferAdapter,
    Prefix,
    Prompt,
    PTuning,
    RandLoRA,
    SSF,
    TrainableTokens,
    TrainedCopy,
    VeRA,
    XLoRA,
)
"""Every method of the package. This is the only list of them; `registering` knows users' own too."""
