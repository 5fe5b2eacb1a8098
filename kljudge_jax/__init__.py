"""Judge decoding for JAX: speculative decoding under lossless and relaxed verification rules."""

from kljudge_jax import verification
from kljudge_jax.decoding.adaptive import Adaptive
from kljudge_jax.decoding.draft import ModelDraft
from kljudge_jax.decoding.generate import generate
from kljudge_jax.decoding.prompt_lookup import PromptLookup
from kljudge_jax.decoding.results import Generation, Progress
from kljudge_jax.decoding.score import score
from kljudge_jax.decoding.self_draft import SelfDraft
from kljudge_jax.decoding.stats import Cycle, Stats
from kljudge_jax.decoding.stream import Event, stream
from kljudge_jax.errors import InputError
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks import Problem, Task, load_task
from kljudge_jax.verification import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Cycle",
    "Event",
    "Generation",
    "InputError",
    "ModelDraft",
    "ModelPair",
    "Problem",
    "Progress",
    "PromptLookup",
    "Rope",
    "SelfDraft",
    "Stats",
    "Task",
    "Transformer",
    "TransformerConfig",
    "generate",
    "load_task",
    "score",
    "stream",
    *verification.__all__,
]
