"""Judge decoding for JAX: speculative decoding under lossless and relaxed verification rules.

import kljudge_jax as kj

pair = kj.ModelPair.embedded()  # or kj.ModelPair.from_pretrained(target, draft)
out = kj.generate(pair, "Tom has 3 red pens.\\n", verifier="kl:0.4", draft_length=8)
print(out.text[0], out.stats.mean_acceptance_length)  # in a notebook `out` shows itself
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kljudge_jax._public import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "EARS",
    "AcceptAll",
    "Adaptive",
    "Bench",
    "BlockVerification",
    "Cache",
    "Cactus",
    "Calibration",
    "CascadeOpt",
    "CascadeToken",
    "Comparison",
    "Correspondence",
    "Cycle",
    "DFlashDraft",
    "Dataset",
    "DecodingConfig",
    "DivergenceThreshold",
    "Drafter",
    "Eagle3Draft",
    "Ensemble",
    "EntropyThreshold",
    "EntropyVerify",
    "Event",
    "FLy",
    "Generation",
    "GreedyExact",
    "HeadRecipe",
    "InputError",
    "KLJudge",
    "KSequential",
    "Lenience",
    "LinearJudge",
    "MarginAcceptance",
    "Mentored",
    "Model",
    "ModelDraft",
    "ModelPair",
    "MultiPathBlock",
    "PivotAware",
    "Problem",
    "Progress",
    "PromptLookup",
    "RandomAcceptance",
    "Reflective",
    "RegretBudget",
    "RelaxedFuzzy",
    "RelaxedThinking",
    "RelaxedThinkingRatio",
    "Rope",
    "Rule",
    "Secure",
    "SelfDraft",
    "SpeculativeSampling",
    "Stats",
    "SyntheticAcceptance",
    "Task",
    "TaskResult",
    "ThresholdRule",
    "TokenRule",
    "TopKAcceptance",
    "TopologyPlan",
    "TrainedDraft",
    "TrainedJudge",
    "Transformer",
    "TransformerConfig",
    "TypicalAcceptance",
    "Verdict",
    "Verifier",
    "VerifyInputs",
    "adapt",
    "bench",
    "calibrate",
    "check_model",
    "compare",
    "correspond",
    "describe_rules",
    "generate",
    "load_task",
    "mine",
    "parse_verifier",
    "plan",
    "register",
    "register_task",
    "score",
    "shipped_bench",
    "stream",
    "sweep",
    "train_draft",
    "train_judge",
]

_ROOMS = (
    "core",
    "drafters",
    "evaluation",
    "generation",
    "judges",
    "kernels",
    "models",
    "parallel",
    "tasks",
    "verification",
)


def __getattr__(name: str) -> object:
    # Imported when it is first asked for, since JAX takes seconds: `kljudge --help` needs none of it.
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = importlib.import_module("kljudge_jax._public")
    globals().update({each: getattr(public, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]
