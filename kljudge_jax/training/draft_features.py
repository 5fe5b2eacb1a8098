"""The target's states over a corpus, computed once and kept on disk: what a draft head learns from."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from msgspec import structs
from safetensors.numpy import save_file

from kljudge_jax.core.target import consume, new_cache
from kljudge_jax.errors import InputError
from kljudge_jax.models.fingerprint import fingerprint, same_model
from kljudge_jax.records import Count, Record, differing, named, read, write
from kljudge_jax.results_folder import results_folder
from kljudge_jax.training.draft_corpus import CorpusLine

# Sequences of a file: what a kill can lose, and what is held at once.
_SHARD = 32
# Tokens a row of a pass: on a CPU products of more rows are no faster.
_CHUNK = 32
_ADVICE = "compute the features again in an empty folder"


class FeaturesHead(Record, frozen=True, kw_only=True):
    """What a folder of features holds (`features.json`).

    Attributes:
      target: fingerprint of the model; of early versions' files, of its weights alone.
      layers: whose states, as `Model.__call__` counts them; the last of a row are those after the final norm.
      corpus: SHA-256 of the token ids, in order.
      sequences, tokens: how many.
      hidden_size: of a state.
      ids: the distinct token ids, ascending; None in files of early versions.
    """

    format: Literal["kljudge_jax.features"] = "kljudge_jax.features"
    version: Literal[1] = 1
    target: str
    layers: list[Count]
    corpus: str
    sequences: Count
    tokens: Count
    hidden_size: Count
    ids: list[Count] | None = None


class Learnt(NamedTuple):
    """One sequence of T tokens.

    Attributes:
      tokens: int32 `[T]`.
      answer: where its answer begins.
      states: bfloat16 `[T, (L + 1) H]`, of L layers and after the final norm.
    """

    tokens: np.ndarray
    answer: int
    states: np.ndarray


class Features:
    """Features on disk; a sequence is read when it is asked for.

    Attributes:
      head: what they are of.
      lengths, answers: int `[n]`, how long each sequence is, and where its answer begins.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.head = read(self.folder / "features.json", FeaturesHead, _ADVICE)
        shards = [self._open(i) for i in range(-(-self.head.sequences // _SHARD))]
        self.lengths = np.concatenate([shard.get_tensor("lengths") for shard in shards])
        self.answers = np.concatenate([shard.get_tensor("answers") for shard in shards])

    def __len__(self) -> int:
        return self.head.sequences

    def __getitem__(self, index: int) -> Learnt:
        shard = index // _SHARD
        first = int(self.lengths[shard * _SHARD : index].sum())
        rows = slice(first, first + int(self.lengths[index]))
        file = self._open(shard)
        return Learnt(file.get_slice("tokens")[rows], int(self.answers[index]), file.get_slice("states")[rows])

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """The distinct token ids, int32, ascending."""
        if self.head.ids is not None:
            return np.asarray(self.head.ids, np.int32)
        shards = -(-self.head.sequences // _SHARD)
        return np.unique(np.concatenate([self._open(i).get_tensor("tokens") for i in range(shards)]))

    def _open(self, shard: int) -> Any:
        path = _shard(self.folder, shard)
        try:
            return safetensors.safe_open(str(path), framework="np")
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): {_ADVICE}") from error


def compute_features(
    target: Any,
    corpus: Sequence[CorpusLine],
    layers: tuple[int, ...],
    folder: str | Path,
    *,
    batch_size: int = 8,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Runs the target over every sequence, and writes its states.

    A second call goes on after the last whole file. A file holds some 32 sequences, and no more is held in memory.

    Args:
      target: a `Model` whose layers can be asked for.
      corpus: the sequences.
      layers: whose states.
      folder: of the files.
      batch_size: sequences of a pass.
      report: told how many of how many tokens are done.

    Raises:
      InputError: the folder holds features of something else, or cannot be written.
    """
    folder = results_folder(folder)
    if not corpus:
        raise InputError("there is nothing to learn from: give a corpus of at least one answer")
    sequences = [np.asarray([*line.prompt, *line.answer], np.int32) for line in corpus]
    answers = np.asarray([len(line.prompt) for line in corpus], np.int32)
    total = sum(map(len, sequences))
    digest = hashlib.sha256(b"".join(len(s).to_bytes(8) + s.tobytes() for s in sequences) + answers.tobytes())
    hidden = jax.eval_shape(lambda: consume(target, jnp.zeros((1, 1), jnp.int32), new_cache(target, 1, 1, "target"))[0])
    if hidden.hidden is None:
        raise InputError("the target gives logits alone, and a head learns from its hidden states")
    head = FeaturesHead(
        target=fingerprint(target),
        layers=list(layers),
        corpus=digest.hexdigest(),
        sequences=len(corpus),
        tokens=total,
        hidden_size=hidden.hidden.shape[-1],
        ids=np.unique(np.concatenate(sequences)).tolist(),
    )
    path = folder / "features.json"
    if path.exists() and any(folder.glob("*.safetensors")):
        known = read(path, FeaturesHead, _ADVICE)
        if same_model(known.target, head.target):
            known = structs.replace(known, target=head.target)
        # What the corpus says: early versions did not note it.
        if others := differing(structs.replace(known, ids=head.ids), head):
            raise InputError(
                f"{folder} holds features that differ in {others}: choose an empty folder, or ask for the same"
            )
    write(path, head)
    done = 0
    for shard in range(-(-len(sequences) // _SHARD)):
        rows = range(shard * _SHARD, min((shard + 1) * _SHARD, len(sequences)))
        if not _shard(folder, shard).exists():
            found = dict(_states(target, [sequences[i] for i in rows], layers, batch_size))
            tensors = {
                "tokens": np.concatenate([sequences[i] for i in rows]),
                "lengths": np.asarray([len(sequences[i]) for i in rows], np.int32),
                "answers": answers[rows.start : rows.stop],
                "states": np.concatenate([found[i] for i in range(len(rows))]),
            }
            beside = folder / "unfinished"
            with named(_shard(folder, shard)) as file:
                save_file(tensors, str(beside))
                os.replace(beside, file)
        done += sum(len(sequences[i]) for i in rows)
        report(done, total)
    return Features(folder)


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.safetensors"


def _states(target, sequences: Sequence[np.ndarray], layers, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each sequence's index and states, those of one length side by side."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        width = -(-max(len(sequences[i]) for i in rows) // (2 * _CHUNK)) * 2 * _CHUNK
        # Always as many rows, so that few programs are compiled; the rest is computed and thrown away.
        tokens = np.zeros((min(batch_size, len(sequences)), width), np.int32)
        for row, i in enumerate(rows):
            tokens[row, : len(sequences[i])] = sequences[i]
        states = np.asarray(_run(target, tokens, layers=layers))
        for row, i in enumerate(rows):
            yield i, states[row, : len(sequences[i])]


@functools.partial(jax.jit, static_argnames="layers")
def _run(target, tokens: jax.Array, *, layers: tuple[int, ...]) -> jax.Array:
    """States bfloat16 `[B, T, (L + 1) H]` of tokens `[B, T]`."""
    batch, width = tokens.shape

    def step(cache, part):
        features, cache = consume(target, part, cache, layers)
        joined = jnp.concatenate([*features.layers, features.hidden], axis=-1)
        return cache, joined.astype(jnp.bfloat16)

    parts = tokens.reshape(batch, width // _CHUNK, _CHUNK).swapaxes(0, 1)
    _, states = jax.lax.scan(step, new_cache(target, batch, width, "target"), parts)
    return states.swapaxes(0, 1).reshape(batch, width, -1)
