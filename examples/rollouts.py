"""Rollouts for reinforcement learning: answers by speculative decoding from a target that changes between steps.

The learner is a small GRPO: several answers a prompt, advantages within each group, a clipped ratio. What matters is
the other half: sampling compiles once, whatever the weights; every token comes with the target's log-probability, at
temperature 1 and as it was sampled; and under a lossless rule the answers are samples of the target itself.

    python examples/rollouts.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kljudge_jax as kj


class Step(NamedTuple):
    """What a step leaves: the models after it, the answers before it, their rewards, and the ratios of the learner."""

    models: kj.core.Models
    rollout: kj.core.Result
    rewards: np.ndarray
    ratios: np.ndarray
    mean_acceptance_length: float


@functools.partial(jax.jit, static_argnames=("drafter", "shape"))
def rollout(models, rule, prompts, lengths, keys, numbers, *, drafter, shape):
    """Answers to prompts int32 `[B, P]`: a `kj.core.Result`, and the cycles of each int32 `[B]`."""
    state = kj.core.init(models, drafter, rule, prompts, lengths, keys, numbers, shape=shape)
    state = kj.core.decode(models, drafter, rule, state, numbers, shape=shape)
    return kj.core.result(state), state.cycles


def answer_logprobs(model, prompts, lengths, tokens, temperature):
    """Log-probabilities f32 `[B, N]` of answers int32 `[B, N]` in one pass without a cache, to be differentiated."""
    room = tokens.shape[1]
    place = jnp.arange(prompts.shape[1] + room)[None]
    answer = jnp.take_along_axis(tokens, jnp.clip(place - lengths[:, None], 0, room - 1), axis=1)
    whole = jnp.where(place < lengths[:, None], jnp.pad(prompts, ((0, 0), (0, room))), answer)
    before = lengths[:, None] - 1 + jnp.arange(room)[None]
    hidden = jnp.take_along_axis(model(whole)[0].hidden, before[..., None], axis=1)
    logs = jax.nn.log_softmax(model.logits(hidden) / temperature, axis=-1)
    return jnp.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]


@jax.jit
def improve(model, prompts, lengths, result, advantages, temperature, rate):
    """The model after one clipped policy-gradient step, and the ratios f32 `[B, N]` before it."""
    written = jnp.arange(result.tokens.shape[1])[None] < result.count[:, None]
    old = jnp.where(written, result.sampled_logprobs, 0.0)

    def loss(model):
        new = answer_logprobs(model, prompts, lengths, result.tokens, temperature)
        ratio = jnp.exp(jnp.where(written, new - old, 0.0))
        gain = jnp.minimum(ratio * advantages[:, None], jnp.clip(ratio, 0.8, 1.2) * advantages[:, None])
        return -jnp.sum(jnp.where(written, gain, 0.0)) / jnp.sum(written), ratio

    gradient, ratio = jax.grad(loss, has_aux=True)(model)
    return jax.tree.map(lambda w, g: w - rate * g, model, gradient), ratio


@jax.jit
def imitate(draft, prompts, lengths, result, rate):
    """The draft after one step towards what the target wrote, so that it follows a target that changes."""
    written = jnp.arange(result.tokens.shape[1])[None] < result.count[:, None]

    def loss(draft):
        logs = answer_logprobs(draft, prompts, lengths, result.tokens, jnp.float32(1.0))
        return -jnp.sum(jnp.where(written, logs, 0.0)) / jnp.sum(written)

    return jax.tree.map(lambda w, g: w - rate * g, draft, jax.grad(loss)(draft))


def train(
    pair: kj.ModelPair,
    prompts: Sequence[Sequence[int]],
    reward: Callable[[int, np.ndarray], float],
    *,
    rule: kj.Verifier | None = None,
    off_policy: bool = False,
    steps: int = 3,
    group: int = 8,
    max_new_tokens: int = 32,
    draft_length: int = 4,
    temperature: float = 1.0,
    rate: float = 1e-2,
    draft_rate: float = 0.0,
    seed: int = 0,
) -> Iterator[Step]:
    """Trains the target of a pair on what `reward` gives the answer, int32 `[n]`, to prompt number i.

    With a `draft_rate` above 0 the draft follows the target; else it stays as it is, and ever fewer of its tokens are
    kept. A relaxed rule is refused unless `off_policy`: its answers are not the target's.
    """
    rule = kj.SpeculativeSampling() if rule is None else rule
    kj.core.check_on_policy(rule, off_policy)
    rows = [prompt for prompt in prompts for _ in range(group)]
    lengths = jnp.asarray([len(row) for row in rows], jnp.int32)
    padded = jnp.asarray([[*row, *[0] * (int(lengths.max()) - len(row))] for row in rows], jnp.int32)
    shape = kj.core.Shape(draft_length, max_new_tokens, trace=True)
    numbers = kj.core.numbers(max_new_tokens, end_ids=pair.eos, temperature=temperature)
    models = kj.core.Models(pair.target, pair.draft)
    for key in jax.random.split(jax.random.key(seed), steps):
        keys = jax.random.split(key, len(rows))
        result, cycles = rollout(models, rule, padded, lengths, keys, numbers, drafter=kj.ModelDraft(), shape=shape)
        tokens, count = np.asarray(result.tokens), np.asarray(result.count)
        rewards = np.asarray([reward(i // group, tokens[i, : count[i]]) for i in range(len(rows))], np.float32)
        grouped = rewards.reshape(-1, group)
        advantages = grouped - grouped.mean(axis=1, keepdims=True)
        advantages /= grouped.std(axis=1, keepdims=True) + 1e-4
        target, ratios = improve(
            models.target, padded, lengths, result, jnp.asarray(advantages.ravel()), numbers.sampling.temperature,
            jnp.float32(rate),
        )  # fmt: skip
        draft = models.draft
        if draft_rate:
            draft = imitate(draft, padded, lengths, result, jnp.float32(draft_rate))
        models = kj.core.Models(target, draft)
        yield Step(models, result, rewards, np.asarray(ratios), float(count.sum() / np.asarray(cycles).sum()))


def main() -> None:
    """Trains the embedded target on its own arithmetic problems."""
    pair, task = kj.ModelPair.embedded(), kj.load_task("arithmetic")
    problems = task.problems(split="train", n=8, seed=7)
    prompts = [pair.tokenizer(problem.prompt)["input_ids"] for problem in problems]

    def reward(i: int, tokens: np.ndarray) -> float:
        return float(task.check(problems[i], pair.tokenizer.decode(tokens, skip_special_tokens=True)))

    for i, step in enumerate(train(pair, prompts, reward, max_new_tokens=96, draft_rate=1e-2)):
        print(
            f"step {i}: reward {step.rewards.mean():.3f}, ratio {step.ratios.mean():.4f}, mean acceptance length "
            f"{step.mean_acceptance_length:.2f}"
        )


if __name__ == "__main__":
    main()
