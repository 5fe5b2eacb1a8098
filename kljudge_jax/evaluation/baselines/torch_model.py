"""Our models as Transformers' models in torch, with the same weights, without a way through disk."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub.errors import StrictDataclassError

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines.hf_config import hf_config
from kljudge_jax.machine import cores
from kljudge_jax.models import names
from kljudge_jax.models.transformer import Transformer, parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_made: weakref.WeakKeyDictionary[Transformer, dict[str, PreTrainedModel]] = weakref.WeakKeyDictionary()


def torch_device() -> torch.device:
    """The device that JAX computes on, as torch names it.

    Raises:
      InputError: torch does not see that device.
    """
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return torch.device("cpu")
    if backend == "gpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    raise InputError(
        f"JAX computes on a {backend} that this torch does not see: leave out the cells hf, hf:assisted and hf:lookup, "
        "install torch for CUDA, or set JAX_PLATFORMS=cpu"
    )


def torch_model(model: Transformer, role: str = "target") -> PreTrainedModel:
    """The model in torch, made at the first call and kept for as long as `model` lives.

    A model that is target and draft at once is made twice, for the passes of each are counted. Torch computes on the
    device that JAX computes on, and on a CPU with all of its cores.
    """
    made = _made.setdefault(model, {})
    if role not in made:
        import torch

        torch.set_num_threads(cores())
        made[role] = export(model).to(torch_device())
    return made[role]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Transformers' progress bars and advice to its own callers off the terminal."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def export(model: Transformer) -> PreTrainedModel:
    """A model of Transformers on the CPU that holds what ours holds, in its dtype.

    One copy of the parameters is made and no more. Norm scales, which are float32 here, are rounded to the model's
    dtype where Transformers multiplies in it: all families but Gemma. Scales of models that were trained in bfloat16
    lose nothing by that.

    Raises:
      InputError: Transformers has no such model.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    options = hf_config(model.config)
    try:
        config = AutoConfig.for_model(options.pop("model_type"), **options)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"Transformers refuses a model of this configuration: {error}") from error
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        wanted = kind(config).state_dict()
    dtype = getattr(torch, str(np.dtype(model.dtype)))
    state, wide = _state(model, wanted, dtype)
    with quiet():
        made = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            # Softcaps are what torch's fused attention lacks.
            attn_implementation="eager" if model.config.attention_softcap else "sdpa",
            generation_config=GenerationConfig(),
        )
    for name, scale in wide.items():
        made.get_submodule(name.removesuffix(".weight")).weight = torch.nn.Parameter(scale)
    if model.config.rope.frequency_divisors is not None:
        frequencies = torch.tensor(model.config.rope.frequencies(model.config.head_dim))
        made.model.rotary_emb.inv_freq.copy_(frequencies)
    return made.requires_grad_(False)


def _state(model: Transformer, wanted, dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a checkpoint that Transformers reads, and those of them that stay float32 beside a small dtype."""
    import torch

    if model.storage.bits is not None:
        raise InputError(f"Transformers cannot be given {model.storage} weights: leave out the bits, or the hf cells")
    if model.storage.head_rows is not None:
        raise InputError("Transformers cannot be given a head that is cut to some tokens: leave out the hf cells")
    config, ours = model.config, parameters(model)
    state, wide = {}, {}
    for theirs, shape in ((name, tuple(tensor.shape)) for name, tensor in wanted.items()):
        name = names.our_name(theirs, config.family, config.tied_head)
        if name is None:
            continue
        if name in ours:
            array = names.their_layout(name, np.asarray(ours.pop(name)), config.family)
        elif name.endswith(".bias"):  # one switch for all biases there, one each here
            array = np.zeros(shape, jnp.float32)
        else:
            raise InputError(f"Transformers' {config.family} has a {theirs} that this model lacks: leave out hf cells")
        if array.shape != shape:
            raise InputError(f"{name} is {list(array.shape)}, and Transformers' {theirs} {list(shape)}")
        if name.endswith(".scale") and config.family.startswith("gemma") and dtype != torch.float32:
            wide[theirs] = _tensor(array, torch.float32)
        state[theirs] = _tensor(array, dtype)
    if ours:
        raise InputError(f"Transformers' {config.family} has no {', '.join(ours)}: leave out the hf cells")
    return state, wide


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of its own memory."""
    import torch

    out = torch.empty(array.shape, dtype=dtype)
    # NumPy cannot see torch's bfloat16; both can see 16 bits.
    wanted = np.dtype(jnp.bfloat16) if dtype == torch.bfloat16 else out.numpy().dtype
    bits = out.view(torch.int16).numpy().view(wanted) if dtype == torch.bfloat16 else out.numpy()
    bits[...] = array
    return out
