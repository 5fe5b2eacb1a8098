"""The most memory of a host that loads a random model into shards: `python tests/models/measure_loading.py`.

A model of about 200 MB in each format, loaded on one device and on a mesh of four, each in a process of its own. On CPU
devices the shards are the host's memory too: what is printed is the peak above what the process had before, beside the
size of the weights and of the largest tensor.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 4096}
MESHES = ("tensor=4", "fsdp=2,tensor=2", None)


def load(path, mesh):
    """Loads and prints bytes: the peak above the start, the weights, the largest tensor."""
    import jax

    import kljudge_jax as kj
    from kljudge_jax.models.transformer import parameters

    jax.block_until_ready(jax.numpy.zeros(1))
    before = resident("VmRSS")
    pair = kj.ModelPair.from_pretrained(path, dtype="float32", mesh=mesh)
    sizes = [x.nbytes for x in parameters(pair.target).values()]
    print(resident("VmHWM") - before, sum(sizes), max(sizes))


def resident(name):
    """Bytes of this process: `VmRSS` now, `VmHWM` at the most. `ru_maxrss` would count the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main():
    from tiny_gguf import write_model
    from tiny_hf import make_hf_model

    from kljudge_jax.models.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder), make_hf_model("llama2", **SIZES)
        model.save_pretrained(root / "safetensors", max_shard_size="50MB")
        write_model(root / "model.gguf", model)
        convert(root / "safetensors", root / "orbax")
        for mesh in MESHES:
            for path in (root / "safetensors", root / "model.gguf", root / "orbax"):
                words = [sys.executable, __file__, str(path), *([mesh] if mesh else [])]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                peak, weights, largest = (int(word) / 1e6 for word in done.stdout.split()[-3:])
                print(
                    f"{path.name:<12}{mesh or 'one device':<16} peak {peak:.0f} MB, weights {weights:.0f} MB, "
                    f"largest tensor {largest:.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(Path(__file__).parent))
    load(sys.argv[1], (sys.argv[2:] or [None])[0]) if sys.argv[1:] else main()
