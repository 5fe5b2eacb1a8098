"""How much faster mining is than the literal search on the embedded pair: `python tests/judges/time_mining.py`.

Both search the same problems; the labels are compared. The literal search scores the whole text again for every token
and keeps nothing, `mine` at batch 1 is the same engine without a batch.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from literal_search import next_token, search

import kljudge_jax as kj
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.reference import make_reference
from kljudge_jax.judges.semi_greedy import Options

NEW, LITERAL, ALONE, MANY = 160, 2, 6, 128


def main():
    pair, task = kj.ModelPair.embedded(), kj.load_task("arithmetic")
    problems = task.problems("validation", MANY, 7)

    def literal(count):
        rows = []
        for i, problem in enumerate(problems[:count]):
            next_token.cache_clear()

            def same(reference, text, problem=problem):
                return make_reference(task, problem, reference, "target").same(text)

            found = search(pair, pair.tokenizer(problem.prompt)["input_ids"], same, NEW, width=320)
            rows += [[i, *row[:4]] for row in found]
        return rows

    def mined(batch, count):
        with tempfile.TemporaryDirectory() as folder:
            data = mine(pair, task, folder, split="validation", n=count, options=Options(NEW, batch=batch))
        return [[data[name][row] for name in ("question", "position", "important", "target_token", "draft_token")]
                for row in range(len(data))]  # fmt: skip

    def timed(what, search, count):
        began = time.perf_counter()
        rows = search(count)
        seconds = (time.perf_counter() - began) / count
        print(f"{what}: {seconds:.3f} s a problem ({count} problems, {len(rows)} mismatches)", flush=True)
        return seconds, rows

    for warm in (lambda: mined(1, 2), lambda: mined(32, 33), lambda: literal(1)):  # compiles
        warm()
    slow, expected = timed("literal search", literal, LITERAL)
    one, _ = timed("mine, batch 1", lambda count: mined(1, count), ALONE)
    fast, rows = timed("mine, batch 32", lambda count: mined(32, count), MANY)
    found = [row for row in rows if row[0] < LITERAL]
    print(f"labels of the first {LITERAL} problems equal: {found == expected} ({len(expected)} mismatches)")
    print(f"batch 32 against the literal search: {slow / fast:.0f}x; against batch 1: {one / fast:.1f}x")


if __name__ == "__main__":
    main()
