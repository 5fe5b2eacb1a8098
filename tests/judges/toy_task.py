"""A task of nonsense that a random pair over bytes can be mined on."""

import random
import string

from kljudge_jax.tasks.base import Problem


class LetterParity:
    """Is the number of letters a to c in the text even?"""

    name = "letter parity"

    def problems(self, split="test", n=200, seed=7):
        rng = random.Random(seed)
        prompts = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 12))) for _ in range(n)]
        return [Problem(f"{split}/{i}", prompt, rng.choice(("even", "odd"))) for i, prompt in enumerate(prompts)]

    def check(self, problem, text):
        return self.answer(text) == problem.answer

    def answer(self, text):
        return ("even", "odd")[sum(text.count(letter) for letter in "abc") % 2]
