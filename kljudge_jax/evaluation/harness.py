"""A pair under a verification rule as a model of EleutherAI's lm-evaluation-harness (`lm_eval`), named `kljudge`.

Importing this file registers the name. What the harness asks of a model is described in lm_eval/api/model.py.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.generation_kwargs import read_generation_kwargs
from kljudge_jax.evaluation.loglikelihood import Continuation, log_likelihoods, windows
from kljudge_jax.generation import stats
from kljudge_jax.generation.chat_template import fill_template
from kljudge_jax.generation.config import DecodingConfig, DecodingFields, configured
from kljudge_jax.generation.generate import generate
from kljudge_jax.models.leaves import shortest_limit
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification import Verifier
from kljudge_jax.verification.specs import spec_of

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import simple_parse_args_string
    from tqdm import tqdm
except ImportError as error:
    raise InputError(f"the harness is not installed ({error}): pip install 'kljudge-jax[harness]'") from error

_LOADED_WITH = (
    *("dtype", "draft_vocab", "bits", "draft_bits", "mesh", "axes", "draft_axes"),
    *("revision", "draft_revision", "tokenizer"),
)


def harness_runs(names: Sequence[str], include_path: str | None = None) -> dict[str, Callable[..., dict]]:
    """What evaluates a model on each of some tasks: `simple_evaluate` without its `tasks`.

    Args:
      names: of the harness, or of YAML files in `include_path`.
      include_path: a folder of more tasks.

    Raises:
      InputError: there is no such task or folder.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"{include_path} is no folder of tasks: name one that holds YAML files")
    known = TaskManager(include_path=include_path)
    for name in names:
        if name not in known.all_tasks:
            raise InputError(f"the harness has no task {name!r}: `lm_eval ls tasks` lists those it has")
    return {name: functools.partial(simple_evaluate, tasks=[name], task_manager=known) for name in names}


@register_model("kljudge")
class KLJudgeLM(TemplateLM):
    """Answers the requests of harness tasks: `lm_eval.simple_evaluate(model=KLJudgeLM(pair, "kl:0.4"), tasks=[...])`.

    Tasks that generate are decoded under the rule. Tasks that compare log-likelihoods (multiple choice, perplexity) are
    scored by the target alone: no rule changes them.

    Args:
      pair: target, draft and tokenizer.
      verifier: as `generate` takes it; none is plain decoding.
      max_length: the most tokens of context and answer; by default what the models were made for. Longer contexts lose
        their beginning.
      batch_size: the harness's name for `batch`: requests of a pass, or answers decoded side by side.
      config: how tasks that generate are decoded, and what the chat template is told; None is
        `DecodingConfig(batch=8)`. A task says itself how it samples, what ends an answer and mostly how long one may
        be. A request draws by its place among the requests, whatever the batch.
      **decoding: fields of the configuration, such as `draft_length=4`, in place of those of `config`.

    Raises:
      InputError: the pair has no tokenizer, template_args are given and it has no chat template, or a number is out of
        its range.
    """

    def __init__(
        self,
        pair: ModelPair,
        verifier: Verifier | str | None = None,
        *,
        max_length: int | None = None,
        batch_size: int | None = None,
        config: DecodingConfig | None = None,
        **decoding: Unpack[DecodingFields],
    ):
        super().__init__()
        if pair.tokenizer is None:
            raise InputError("harness tasks are text, and the pair has no tokenizer: add one")
        if batch_size is not None:
            decoding["batch"] = batch_size
        config = configured("evaluate", config, decoding)
        if config.template_args and not getattr(pair.tokenizer, "chat_template", None):
            raise InputError("template_args are told to a chat template, and the tokenizer has none: leave them out")
        drafts = verifier not in (None, "none") and getattr(config.drafter, "uses_draft_model", False)
        models = [model for model in (pair.target, pair.draft if drafts else None) if model is not None]
        most = shortest_limit(*models) or sys.maxsize  # where no model names one, a context is never cut
        if max_length is not None and not 1 < max_length <= most:
            raise InputError(f"max_length must be from 2 to {most}, which the models take, got {max_length}")
        self.pair = pair
        self.tokenizer = pair.tokenizer
        self.verifier, self.config, self.max_length = verifier, config, max_length or most
        self.batch_size = config.batch or 8  # the harness wants a number
        self._key = jax.random.key(config.seed)
        self._answers: list[stats.Stats] = []
        self._seconds = np.zeros(3)  # in all, of prompts, of compilation

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping, additional_config: Mapping | None = None) -> KLJudgeLM:
        """Loads the pair of `model_args`: `target`, `draft`, `dtype` and so on, beside the arguments of this class.

        They are those of `ModelPair.from_pretrained`, or with `target` "embedded" those of `ModelPair.embedded`;
        `verifier` and `drafter` are spec strings.
        """
        given = {**arg_dict, **{name: value for name, value in (additional_config or {}).items() if value is not None}}
        given = {name: value for name, value in given.items() if value is not None}
        if "target" not in given:
            raise InputError("model_args must name the target, as in target=big.gguf,draft=small.gguf,verifier=kl:0.4")
        target, draft = given.pop("target"), given.pop("draft", None)
        loaded = {name: given.pop(name) for name in _LOADED_WITH if name in given}
        known = {"verifier", "max_length", "batch_size", *DecodingFields.__annotations__}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise InputError(f"{unknown[0]!r} is no argument of this model: choose of {', '.join(sorted(known))}")
        if isinstance(given.get("batch_size"), str):
            raise InputError(f"batch_size is a whole number here, not {given['batch_size']!r}")
        pair = (
            ModelPair.embedded(draft=draft or "embedded", **loaded)
            if target == "embedded"
            else ModelPair.from_pretrained(target, draft, **({"dtype": "auto"} | loaded))
        )
        return cls(pair, **given)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping | None = None) -> KLJudgeLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def stats(self) -> stats.Stats | None:
        """What the answers so far have cost, pooled; None before the first."""
        if not self._answers:
            return None
        seconds, prefill, compilation = self._seconds.tolist()
        return dataclasses.replace(
            stats.pool(self._answers), seconds=seconds, prefill_seconds=prefill, compile_seconds=compilation
        )

    def get_model_info(self) -> dict:
        """For the harness's report."""
        return {
            "target": self.pair.target_name,
            "draft": self.pair.draft_name,
            "model_dtype": self.pair.precision,
            "verifier": spec_of(self.verifier),
            **{name: str(value) for name, value in self.config.to_json().items()},
        }

    @property
    def eot_token_id(self) -> int:
        end = self.tokenizer.eos_token_id
        end = self.pair.eos[0] if end is None and self.pair.eos else end
        if end is None:
            raise InputError("a text without context follows the tokenizer's BOS or EOS, and it has neither: add one")
        return end

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError("the tokenizer has no chat template: run the task without apply_chat_template")
        return fill_template(
            self.tokenizer,
            chat_history,
            self.config.template_args,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token ids. By default special tokens are added, unless the text (a filled chat template) begins with BOS."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each (texts, context ids, continuation ids)."""
        for (_, continuation), _, ids in requests:
            if not ids:
                raise InputError(f"the continuation {continuation!r} has no token of its own after its context")
        asked = [Continuation(context, ids) for _, context, ids in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        scored = log_likelihoods(self.pair.target, asked, self.batch_size, self.max_length)
        for i, (total, greedy) in tqdm(scored, "Log-likelihoods", len(asked), disable=disable_tqdm):
            answers[i] = total, greedy
            self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        parts, of = [], []
        for i, text in enumerate(texts):
            # The prefix stands for BOS; the tokenizer's own would be scored as a word of the text.
            own = windows(self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length)
            parts += own
            of += [i] * len(own)
        totals = [0.0] * len(texts)
        scored = log_likelihoods(self.pair.target, parts, self.batch_size, self.max_length)
        for part, (total, _) in tqdm(scored, "Rolling log-likelihoods", len(parts), disable=disable_tqdm):
            totals[of[part]] += total
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        asked = [request.args for request in requests]
        groups: dict[tuple[DecodingConfig, tuple[int, ...]], list[int]] = defaultdict(list)
        for i, (_, kwargs) in enumerate(asked):
            groups[read_generation_kwargs(kwargs, self.tokenizer, self.config)].append(i)
        for settings, _ in groups:
            if settings.max_new_tokens >= self.max_length:
                raise InputError(
                    f"a task asks for {settings.max_new_tokens} new tokens, and the models take {self.max_length} with "
                    "the prompt: lower its max_gen_toks"
                )
        answers = [""] * len(asked)
        with tqdm(total=len(asked), desc="Answers", disable=disable_tqdm) as bar:
            for (settings, ends), members in groups.items():
                room = self.max_length - settings.max_new_tokens
                prompts = {i: np.asarray(self._prompt(asked[i][0])[-room:], np.int32) for i in members}
                # Neighbours of one length waste the least padding, and a batch too large fails at once.
                members = sorted(members, key=lambda i: -len(prompts[i]))
                for begin in range(0, len(members), self.batch_size):
                    batch = members[begin : begin + self.batch_size]
                    texts = self._decode([prompts[i] for i in batch], batch, settings, ends)
                    for i, text in zip(batch, texts, strict=True):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", asked[i], text)
                    bar.update(len(batch))
        return answers

    def _prompt(self, text: str) -> list[int]:
        return self.tok_encode(text) or [self.prefix_token_id]

    def _decode(
        self,
        prompts: Sequence[np.ndarray],
        places: Sequence[int],
        settings: DecodingConfig,
        ends: tuple[int, ...],
    ) -> list[str]:
        pair = dataclasses.replace(self.pair, eos=tuple(dict.fromkeys((*self.pair.eos, *ends))))
        out = generate(
            pair,
            prompts,
            verifier=self.verifier,
            **(settings.arguments() | {"template_args": ()}),  # `apply_chat_template` has read them
            key=jax.vmap(jax.random.fold_in, (None, 0))(self._key, np.asarray(places)),
        )
        self._answers += out.stats.rows
        self._seconds += [out.stats.seconds, out.stats.prefill_seconds, out.stats.compile_seconds]
        return out.text
