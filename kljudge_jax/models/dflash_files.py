"""DFlash heads as others publish them: config.json with `dflash_config`, and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.models import names
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.dflash import DFlashConfig, DFlashHead, abstract
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import fill, parameters
from kljudge_jax.models.weights import SafetensorsFolder, faults_of, read_parameters

_OWN = {"fc.weight": "fc.weight", "hidden_norm.weight": "hidden_norm.scale"}

# What newer heads change in the forward pass, and the value that changes nothing.
_CHANGES: dict[str, Any] = {
    "attention_mode": "gqa",
    "attention_modes": None,
    "final_logit_softcapping": None,
    "input_embedding_scale": 1.0,
    "is_causal": False,
    "logit_scale": 1.0,
    "output_multiplier": 1.0,
}


class DFlashFolder(SafetensorsFolder):
    """A head's folder; no weight is read before `load`.

    Raises:
      InputError: it is broken, or no head that runs here; all that is wrong is said.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        options = self.options
        own = options.get("dflash_config")
        if not isinstance(own, dict):
            raise InputError(f"{self.where}: config.json has no dflash_config, which names mask and layers")
        given = {**options, **own}
        layers, mask, block = (given.get(name) for name in ("target_layer_ids", "mask_token_id", "block_size"))
        faults = []
        if not (isinstance(layers, list) and layers and all(type(i) is int and i >= 0 for i in layers)):
            faults.append(f"target_layer_ids is {layers!r} where a list of the target's layers is needed")
        if type(mask) is not int or mask < 0:
            faults.append(f"mask_token_id is {mask!r} where a token is needed")
        if type(block) is not int or block < 2:
            faults.append(f"block_size is {block!r} where a whole number from 2 on is needed")
        if self.config.family != "qwen3":
            faults.append(f"model_type is {self.config.family!r}, and the layers of a DFlash head are those of 'qwen3'")
        if self.config.windows:
            faults.append("layers with a sliding window do not run here")
        part = options.get("draft_vocab_size")
        if part not in (None, self.config.vocab_size):
            faults.append(f"it drafts {part!r} of {self.config.vocab_size} tokens: heads of all tokens run here")
        for name, unchanged in _CHANGES.items():
            if given.get(name) not in (None, unchanged):
                faults.append(f"{name} {given[name]!r} does not run here")
        if faults:
            raise InputError(f"{self.where}: config.json: {'; '.join(faults)}")
        self._layers = tuple(
            i + 1 for i in layers or ()
        )  # theirs is the index of a block, after which the state stands
        self._mask, self._block = int(mask or 0), int(block or 0)

    def _our_name(self, theirs: str) -> str | None:
        name = theirs.removeprefix("model.")
        return _OWN[name] if name in _OWN else names.our_name(theirs, "qwen3", tied_head=False)

    def fitted(self, target: TransformerConfig) -> DFlashConfig:
        """Its shape, for a target of that one.

        Raises:
          InputError: it is no head of that target, or lacks tensors; all that is wrong is said.
        """
        own, faults = self.config, []
        if max(self._layers) > target.num_layers:
            asked = [layer - 1 for layer in self._layers]
            faults.append(f"it reads what layers {asked} give, and the target has {target.num_layers}")
        made_for = self.options.get("num_target_layers")
        if made_for not in (None, target.num_layers):
            faults.append(f"it was made for a target of {made_for} layers, and this one has {target.num_layers}")
        if own.hidden_size != target.hidden_size:
            faults.append(f"its hidden size is {own.hidden_size}, and the target's {target.hidden_size}")
        if own.vocab_size != target.vocab_size:
            faults.append(f"it was made for {own.vocab_size} tokens, and the target has {target.vocab_size}")
        if self._mask >= target.vocab_size:
            faults.append(f"its mask is token {self._mask}, and the target has {target.vocab_size}")
        config = DFlashConfig(own, self._layers, self._block, self._mask)
        want = {name: leaf.shape for name, leaf in parameters(abstract(config)).items()}
        faults += faults_of(want, self.shapes())
        if faults:
            raise InputError(f"{self.where} is no DFlash head of this target: {'; '.join(faults)}")
        return config

    def load(self, config: DFlashConfig, storage: Storage) -> DFlashHead:
        """The head."""
        wanted = parameters(abstract(config, Storage(storage.dtype)))
        return fill(abstract(config, storage), read_parameters(self, wanted, storage))
