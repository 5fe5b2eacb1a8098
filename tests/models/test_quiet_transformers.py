"""Importing the package prints nothing, and leaves the settings of the process alone."""

import os
import subprocess
import sys

# In a notebook without ipywidgets, where Transformers and tqdm have something to say.
PROGRAM = """
import os, sys, types
import ipykernel.zmqshell
sys.modules["ipywidgets"] = sys.modules["torch"] = None
import kljudge_jax
kljudge_jax.ModelPair.embedded()
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""


def test_nothing_is_said_and_nothing_is_set():
    kept = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=kept, timeout=300)
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "")
