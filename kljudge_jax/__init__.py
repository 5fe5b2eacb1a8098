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
from kljudge_jax.evaluation.bench_call import Bench, bench
from kljudge_jax.evaluation.compare_call import Comparison, compare
from kljudge_jax.evaluation.report import TaskResult
from kljudge_jax.evaluation.sweep_call import sweep
from kljudge_jax.judges.correspondence import Correspondence
from kljudge_jax.judges.dataset import Dataset
from kljudge_jax.judges.jobs import correspond, train_judge
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.training import TrainedJudge
from kljudge_jax.models.config import Rope, TransformerConfig
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.shipped import shipped_bench
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.tasks import Problem, Task, load_task
from kljudge_jax.verification import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Bench",
    "Comparison",
    "Correspondence",
    "Cycle",
    "Dataset",
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
    "TaskResult",
    "TrainedJudge",
    "Transformer",
    "TransformerConfig",
    "bench",
    "compare",
    "correspond",
    "generate",
    "load_task",
    "mine",
    "score",
    "shipped_bench",
    "stream",
    "sweep",
    "train_judge",
]
__all__ += verification.__all__
