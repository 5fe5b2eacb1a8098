"""Everything that `import kljudge_jax` offers, imported at once when the first of it is asked for."""

from kljudge_jax.core.controller import Adaptive as Adaptive
from kljudge_jax.drafters.model_draft import ModelDraft as ModelDraft
from kljudge_jax.drafters.prompt_lookup import PromptLookup as PromptLookup
from kljudge_jax.drafters.self_draft import SelfDraft as SelfDraft
from kljudge_jax.errors import InputError as InputError
from kljudge_jax.evaluation.bench_call import Bench as Bench
from kljudge_jax.evaluation.bench_call import bench as bench
from kljudge_jax.evaluation.compare_call import Comparison as Comparison
from kljudge_jax.evaluation.compare_call import compare as compare
from kljudge_jax.evaluation.report import TaskResult as TaskResult
from kljudge_jax.evaluation.sweep_call import sweep as sweep
from kljudge_jax.generation.generate import generate as generate
from kljudge_jax.generation.results import Generation as Generation
from kljudge_jax.generation.results import Progress as Progress
from kljudge_jax.generation.score import score as score
from kljudge_jax.generation.stats import Cycle as Cycle
from kljudge_jax.generation.stats import Stats as Stats
from kljudge_jax.generation.stream import Event as Event
from kljudge_jax.generation.stream import stream as stream
from kljudge_jax.judges.correspondence import Correspondence as Correspondence
from kljudge_jax.judges.dataset import Dataset as Dataset
from kljudge_jax.judges.jobs import correspond as correspond
from kljudge_jax.judges.jobs import train_judge as train_judge
from kljudge_jax.judges.mining import mine as mine
from kljudge_jax.judges.training import TrainedJudge as TrainedJudge
from kljudge_jax.models.adapt import adapt as adapt
from kljudge_jax.models.check_model import check_model as check_model
from kljudge_jax.models.config import Rope as Rope
from kljudge_jax.models.config import TransformerConfig as TransformerConfig
from kljudge_jax.models.pair import ModelPair as ModelPair
from kljudge_jax.models.shipped import shipped_bench as shipped_bench
from kljudge_jax.models.transformer import Transformer as Transformer
from kljudge_jax.tasks import Problem as Problem
from kljudge_jax.tasks import Task as Task
from kljudge_jax.tasks import load_task as load_task
from kljudge_jax.verification import *  # noqa: F403
