"""Imports Transformers without its advice on what is not needed here: PyTorch, and widgets for progress bars.

`models` imports this before anything else of Transformers. Settings of the process are left as they were.
"""

from __future__ import annotations

import os
import warnings

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"

_before = os.environ.get(_ADVICE)
os.environ.setdefault(_ADVICE, "1")
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import tqdm.auto  # noqa: F401
        from transformers import AutoTokenizer as AutoTokenizer
        from transformers import PreTrainedTokenizerFast as PreTrainedTokenizerFast
finally:
    if _before is None:
        del os.environ[_ADVICE]
