"""The same work from Python and by a command has the same defaults: else one sweep has two results."""

import dataclasses
import inspect
import re

import click
import pytest
from command_lines import command_of

import kljudge_jax as kj
from kljudge_jax.drafters.specs import parse_draft_length, parse_drafter
from kljudge_jax.evaluation import perplexity
from kljudge_jax.generation.chat_template import TemplateArgs
from kljudge_jax.generation.config import DEFAULTS, DecodingConfig
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.semi_greedy import Options as MiningOptions
from kljudge_jax.judges.sources import Likelihood, Rollouts
from kljudge_jax.judges.training import Options as TrainingOptions
from kljudge_jax.spec import split_specs

# Commands, and what stands behind each; `--batch 1,8` has another name there.
CALLS = {
    "generate": kj.generate,
    "sweep": kj.sweep,
    "bench": kj.bench,
    "calibrate": kj.calibrate,
    "compare": kj.compare,
    "train-judge": TrainingOptions,
    "correspond": kj.correspond,
    "perplexity": perplexity.perplexity,
}
NAMES = {("bench", "batches"): "batch"}


def defaults_of(function):
    """What a function has where nothing is given."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def given(name):
    """What a command gets where nothing is given, as its call takes it."""
    options = command_of(name).make_context(name, [], resilient_parsing=True).params
    reads = {"rules": lambda text: tuple(split_specs(text)), "draft_length": parse_draft_length}
    reads |= {"drafter": parse_drafter, "thresholds": lambda text: tuple(map(float, text.split(",")))}
    for one, read in reads.items():
        if options.get(one) is not None:
            options[one] = read(options[one])
    return options


@pytest.mark.parametrize("name", CALLS)
def test_options_have_the_defaults_of_the_call(name):
    options = given(name)
    python = {NAMES.get((name, one), one): value for one, value in defaults_of(CALLS[name]).items()}
    # None on either side leaves it to what follows: the models, the configuration.
    both = [one for one, value in options.items() if value is not None and python.get(one) is not None]
    assert both
    for one in both:
        assert options[one] == python[one], one


@pytest.mark.parametrize("name", ["generate", "sweep", "bench", "calibrate", "evaluate"])
def test_options_of_decoding_have_the_defaults_of_the_configuration(name):
    config, options = DecodingConfig(**DEFAULTS.get(name, {})), given(name)
    both = {field.name for field in dataclasses.fields(config)} & options.keys() - {NAMES.get((name, "batches"))}
    assert both >= {"max_new_tokens", "seed", "drafter", "section_ids", "template_args"}
    options["template_args"] = TemplateArgs(options["template_args"])
    for one in both:
        assert options[one] == getattr(config, one), one


def test_mining_says_the_defaults_of_what_it_calls():
    python = defaults_of(mine) | defaults_of(MiningOptions)
    params = [one for one in command_of("mine").params if isinstance(one, click.Option) and one.name in python]
    params = [one for one in params if not one.multiple]  # nothing, where it is not given
    said = {one.name: re.search(r"\((\w[\w.]*)\)$", one.help) for one in params}
    assert said.keys() >= {"n", "split", "seed", "max_new_tokens", "batch", "reference", "shortcut"}
    for name, found in said.items():
        assert found[1] == (f"{python[name]:g}" if isinstance(python[name], float) else str(python[name])), name
    assert defaults_of(Likelihood)["threshold"] == 1 and defaults_of(Rollouts)["threshold"] == 0.5


def test_loading_has_the_defaults_of_from_pretrained():
    options, python = given("generate"), defaults_of(kj.ModelPair.from_pretrained)
    shared = [name for name in python if name in options]
    assert {"dtype", "bits", "draft_bits", "cache_bits", "mesh", "revision", "tokenizer"} <= set(shared)
    for name in shared:
        assert options[name] == python[name], name
