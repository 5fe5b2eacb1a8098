"""Baselines that Transformers runs in torch: `generate`, assisted generation and prompt lookup on the same weights.

They get the prompts' token ids as our engine does, at most as many new tokens, the same ids that end an answer and
the same temperature and truncation, on the device that JAX computes on. Greedy answers in float32 are the same tokens;
when sampling the draws differ, and the distribution is the same.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines.base import Answer, Request
from kljudge_jax.evaluation.baselines.passes import Passes, cycles_of
from kljudge_jax.evaluation.baselines.torch_model import quiet, torch_device, torch_model
from kljudge_jax.generation import arguments
from kljudge_jax.generation.detokenize import decode
from kljudge_jax.generation.prompts import tokenize
from kljudge_jax.generation.stats import Cycle, row_stats
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Which baselines a target has run: torch chooses kernels and grows its pools in the first calls.
_warm: weakref.WeakKeyDictionary[Transformer, set[Any]] = weakref.WeakKeyDictionary()


class _HuggingFace:
    """What the three have in common."""

    drafts: ClassVar[bool]
    needs_draft: ClassVar[bool] = False

    def check(self) -> None:
        """See `Baseline`."""
        if importlib.util.find_spec("torch") is None:
            raise InputError(
                "the cells hf, hf:assisted and hf:lookup need torch: pip install 'kljudge-jax[baselines]', or leave "
                "them out"
            )
        torch_device()

    def answer(self, pair: ModelPair, prompts: Sequence[Any], request: Request) -> list[Answer]:
        """See `Baseline`. A model that returns NaN is not noticed here."""
        vocab = pair.target.config.vocab_size
        where = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(len(prompts))]
        args = request.config.template_args
        ids = [tokenize(prompt, pair.tokenizer, vocab, name, args) for prompt, name in zip(prompts, where, strict=True)]
        budget = arguments.budget(request.config.max_new_tokens, len(ids))
        arguments.check_fit(pair.target, pair.draft if self.needs_draft else None, ids, budget, where)
        side_by_side = self.rows(min(len(ids), request.config.batch or len(ids)))
        seen = _warm.setdefault(pair.target, set())
        if self not in seen:
            config = request.config
            most = min(config.max_new_tokens, 2 * (config.longest + 1))
            few = dataclasses.replace(request, config=dataclasses.replace(config, max_new_tokens=most))
            self.decode(pair, ids[:side_by_side], few)
            seen.add(self)
        answers = []
        for first in range(0, len(ids), side_by_side):
            some = slice(first, first + side_by_side)
            asked = dataclasses.replace(request, key=request.key[some])
            answers += [dataclasses.replace(a, batch=first) for a in self.decode(pair, ids[some], asked)]
            if request.answered is not None:
                for i in range(first, len(answers)):
                    request.answered(i, answers[i])
        return answers

    def rows(self, batch: int) -> int:
        """How many of so many prompts are decoded side by side."""
        return 1

    def decode(self, pair: ModelPair, ids: Sequence[np.ndarray], request: Request) -> list[Answer]:
        """Answers to `rows` prompts."""
        raise NotImplementedError

    def _generate(
        self, pair: ModelPair, ids: Sequence[np.ndarray], request: Request, draft=None, **options
    ) -> _Generated:
        """Calls Transformers' `generate` on prompts of any lengths; options are those of its `GenerationConfig`."""
        import torch

        model = torch_model(pair.target)
        width = max(map(len, ids))
        padded, mask = np.zeros((2, len(ids), width), np.int64)
        for row, seen, tokens in zip(padded, mask, ids, strict=True):
            row[width - len(tokens) :] = tokens
            seen[width - len(tokens) :] = 1
        with quiet(), torch.inference_mode(), torch.random.fork_rng(), Passes(model) as passes:
            torch.manual_seed(_seed(request.key[0]))
            began = time.perf_counter()
            out = model.generate(
                inputs=torch.from_numpy(padded).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
                generation_config=_generation_config(pair, request, **options),
                assistant_model=draft,
            )
            out = out.cpu()  # waits for the device
            seconds = time.perf_counter() - began
        new = [_through_eos(row, pair.eos) for row in out[:, width:].numpy().astype(np.int32)]
        return _Generated(new, passes, seconds)

    def _answer(self, pair, tokens, cycles, draft_length, generated, rows, prefill_seconds=0.0, **notes) -> Answer:
        ended = len(tokens) > 0 and int(tokens[-1]) in pair.eos
        stats = row_stats(
            cycles,
            0,
            draft_length,
            "eos" if ended else "length",
            seconds=generated.seconds,
            prefill_seconds=prefill_seconds,
            own_seconds=generated.seconds / len(generated.tokens),
        )
        text = decode(pair.tokenizer, tokens[: len(tokens) - ended])
        return Answer(text, tokens, stats, notes={"engine": _engine(), "batch_size": rows, **notes})


@dataclasses.dataclass(frozen=True)
class _Generated:
    """What one call of Transformers' `generate` gave: the new tokens of each row, its target passes, its time."""

    tokens: list[np.ndarray]
    passes: Passes
    seconds: float


@dataclasses.dataclass(frozen=True)
class HFGenerate(_HuggingFace):
    """Transformers' `generate` with the target alone, prompts side by side behind padding on the left."""

    drafts: ClassVar[bool] = False

    def rows(self, batch: int) -> int:
        return batch

    def decode(self, pair: ModelPair, ids: Sequence[np.ndarray], request: Request) -> list[Answer]:
        done = self._generate(pair, ids, request)
        began = done.passes.began
        prefill = began[1] - began[0] if len(began) > 1 else done.seconds
        # The pass over the prompt gives the first token, so every token took one.
        return [
            self._answer(pair, tokens, [Cycle(0, 0, 1)] * len(tokens), 0, done, len(ids), prefill)
            for tokens in done.tokens
        ]


@dataclasses.dataclass(frozen=True)
class HFAssisted(_HuggingFace):
    """Transformers' assisted generation with the same draft model and a constant draft length, one prompt at a time.

    Transformers supports no batch of several there. Records hold `draft_passes` as well.
    """

    drafts: ClassVar[bool] = True
    needs_draft: ClassVar[bool] = True

    def decode(self, pair: ModelPair, ids: Sequence[np.ndarray], request: Request) -> list[Answer]:
        assert pair.draft is not None
        draft = torch_model(pair.draft, "draft")
        # Transformers reads these off the draft. At its default threshold a draft would end where it is unsure.
        draft.generation_config.num_assistant_tokens = request.config.longest
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        with Passes(draft) as drafted:
            done = self._generate(pair, ids, request, draft)
        return _assisted(self, pair, ids, request, done, draft_passes=len(drafted))


@dataclasses.dataclass(frozen=True)
class HFLookup(_HuggingFace):
    """Transformers' prompt lookup decoding, one prompt at a time: it supports no batch of several.

    Its drafts follow the first place where the last tokens stood, ours the last.

    Attributes:
      ngram: the most tokens that are matched.
    """

    ngram: int = 3

    drafts: ClassVar[bool] = True

    def decode(self, pair: ModelPair, ids: Sequence[np.ndarray], request: Request) -> list[Answer]:
        done = self._generate(
            pair, ids, request, prompt_lookup_num_tokens=request.config.longest, max_matching_ngram_size=self.ngram
        )
        return _assisted(self, pair, ids, request, done)


def _assisted(baseline, pair, ids, request, done, **notes) -> list[Answer]:
    (tokens,) = done.tokens
    inputs = [row[0].tolist() for row in done.passes.inputs]
    cycles = cycles_of(inputs, len(ids[0]), tokens.tolist())
    return [baseline._answer(pair, tokens, cycles, request.config.longest, done, 1, **notes)]


def _generation_config(pair: ModelPair, request: Request, **options) -> GenerationConfig:
    from transformers import GenerationConfig

    config = request.config
    sampling = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    sampling |= {"min_p": config.min_p} if config.min_p else {}
    return GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        eos_token_id=list(pair.eos) or None,
        pad_token_id=0,  # what stands behind an answer that has ended, and is cut off
        do_sample=not config.greedy,
        **({} if config.greedy else sampling),
        **options,
    )


def _through_eos(tokens: np.ndarray, eos: Sequence[int]) -> np.ndarray:
    """Tokens up to the first EOS, itself included."""
    ends = np.flatnonzero(np.isin(tokens, list(eos)))
    return tokens[: ends[0] + 1] if len(ends) else tokens


def _seed(key: jax.Array) -> int:
    return int(np.asarray(jax.random.key_data(key)).astype(np.uint64) @ np.array([1, 2**31], np.uint64)) % 2**63


def _engine() -> dict[str, Any]:
    import torch

    return {
        "transformers": importlib.metadata.version("transformers"),
        "torch": str(torch.__version__),
        "device": torch_device().type,
        "threads": torch.get_num_threads(),
    }
