"""Compiled programs, kept between processes."""

from __future__ import annotations

import os
from typing import Any

import jax

from kljudge_jax.cache_folder import cache_folder, is_ours

_SWITCH = "KLJUDGE_COMPILATION_CACHE"
_JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled() -> None:
    """Has JAX keep what it compiles in the user's cache folder, and look there before it compiles.

    Nothing is changed where a place was chosen (`jax_compilation_cache_dir`, or its variable JAX_COMPILATION_CACHE_DIR,
    which may be empty), with KLJUDGE_COMPILATION_CACHE=0, or if the folder cannot be written, or by others too.
    """
    settings: Any = jax.config  # whose flags are no attributes to a type checker
    if os.environ.get(_SWITCH) == "0" or _JAX_VARIABLE in os.environ or settings.jax_compilation_cache_dir:
        return
    try:
        folder = cache_folder("compiled")
    except OSError:  # JAX would warn of it at every program
        return
    if os.access(folder, os.W_OK) and is_ours(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))
