"""A plan from end to end, with this machine's compiler in the place of a chip's, and what is refused."""

import dataclasses
import json

import jax
import pytest
from tiny_pairs import tiny_config

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.plan import plan as module
from kljudge_jax.evaluation.plan.programs import abstract_pair, compiled_programs
from kljudge_jax.models.shapes import SHAPES
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.verification.rule import RULES

TINY = {"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A shape that compiles in seconds, and four devices that are here."""
    monkeypatch.setitem(SHAPES, "small", TINY)
    monkeypatch.setitem(SHAPES, "four", TINY | {"num_hidden_layers": 4})
    monkeypatch.setattr(module, "topology_devices", lambda spec: jax.devices()[: 1 if "1x1" in spec else 4])


ASKED = {"topology": "v5e:2x2", "prompt_tokens": 20, "max_new_tokens": 16, "draft_length": 2, "batch": 4}


@kj.register
@dataclasses.dataclass(frozen=True)
class InThought(kj.KLJudge):
    """A rule that reads sections."""

    needs = frozenset({"section"})
    spec_name = "kl-in-thought"


RULES.remove(InThought)  # no other test meets it


@pytest.mark.parametrize(("rule", "told"), [(InThought(0.4), True), (kj.KLJudge(0.4), False)])
@pytest.mark.first_case
def test_a_rule_that_reads_sections_is_told_of_some(rule, told):
    pair = abstract_pair(tiny_config(), tiny_config(), Placement.parse(None, None, None), jax.devices()[:1])
    config = kj.DecodingConfig(8, draft_length=2, batch=1)
    (found,) = compiled_programs(pair, rule, config, 8, ("cycle",))
    assert (found.state.section is not None) == told


def test_a_plan_says_what_the_compiler_says():
    names = []
    found = kj.plan("small", "small:layers=1", mesh="data=2,tensor=2", **ASKED, report=names.append)
    assert names == [program.name for program in found.programs] == ["prefill@64", "cycle@64", "refill@64"]
    cycle = found.programs[1]
    assert cycle.collectives["all-reduce"][0] > 0 and cycle.read > 0 and cycle.floor is not None
    assert cycle.arguments > found.weights["target"] + found.weights["draft"] + found.caches
    assert found.fits and found.total < found.limit and found.largest > 1000
    assert json.loads(json.dumps(found.to_dict()))["programs"][1]["floor"] == cycle.floor
    assert "| cycle@64 |" in str(found) and "fits; the largest batch that fits is" in str(found)


@pytest.mark.slow
def test_a_floor_counts_what_a_drafter_reads():
    asked = ASKED | {"topology": "v5e:1x1", "kinds": ("cycle",)}
    plain = kj.plan("small", **asked)
    lookup, half = (kj.plan("small", drafter=drafter, verifier="exact", **asked) for drafter in ("lookup:3", "self:1"))
    model = kj.plan("small", "small:layers=1", **asked)
    assert lookup.programs[0].floor - lookup.caches == plain.programs[0].floor - plain.caches
    assert half.programs[0].floor > lookup.programs[0].floor
    # The draft, K times, and its caches.
    more = 2 * module._share(module.abstract_pair(*_configs(), *_placed()).draft)
    assert model.programs[0].floor - model.caches == plain.programs[0].floor - plain.caches + more
    with pytest.raises(kj.InputError, match="KLJudge reads KL"):
        kj.plan("small", drafter="lookup:3", **asked)


@pytest.mark.slow
def test_a_cut_head_is_planned_with_its_rows_alone():
    asked = ASKED | {"topology": "v5e:1x1", "kinds": ("cycle",)}
    whole = kj.plan("small", "small:layers=1", **asked)
    cut = kj.plan("small", "small:layers=1", draft_vocab=16, **asked)
    vocab = TINY["vocab_size"]
    row, ids = 2 * TINY["hidden_size"], 4 * 16
    # The shape has a head of its own: a draft token reads the rows in its place.
    assert whole.weights["draft"] - cut.weights["draft"] == (vocab - 16) * row - ids
    assert whole.programs[0].floor - cut.programs[0].floor == 2 * ((vocab - 16) * row - ids)
    assert cut.head_rows == (16, vocab) and f"with 16 of {vocab:,} tokens" in str(cut) and whole.head_rows is None


def test_a_head_is_planned_with_what_it_reads():
    asked = ASKED | {"topology": "v5e:1x1", "kinds": ("prefill", "cycle")}
    plain = kj.plan("four", **asked)
    head = kj.plan("four", "eagle3:vocab=64", **asked)
    hidden, inner, vocab = (TINY[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    layer = 6 * hidden * hidden + hidden * hidden + 3 * hidden * inner
    matrices, norms = 3 * hidden * hidden + layer + 64 * hidden, 4 * hidden
    assert head.weights["draft"] == 2 * matrices + 4 * norms + 4 * 64
    assert head.head_rows == (64, vocab) and f"with 64 of {vocab:,} tokens" in str(head)
    # Of a layer, beside the four of the target.
    assert head.caches - plain.caches - 2 * 4 * hidden == pytest.approx(plain.caches / 4, rel=0.02)
    token = 2 * (layer + 64 * hidden) + 4 * norms
    told = 2 * 3 * hidden * hidden
    floors = (
        program.floor - caches for program, caches in ((found.programs[1], found.caches) for found in (head, plain))
    )
    more = next(floors) - next(floors)
    assert more == pytest.approx(2 * token + told, rel=1e-3)


@pytest.mark.slow
def test_a_head_is_planned_over_a_mesh():
    found = kj.plan("four", "eagle3:vocab=64", mesh="data=2,tensor=2", **ASKED)
    assert [program.name for program in found.programs] == ["prefill@64", "cycle@64", "refill@64"]
    whole = kj.plan("four", "eagle3:vocab=64", mesh="data=2,tensor=2", draft_axes="replicated", **ASKED)
    assert whole.weights["draft"] > 1.3 * found.weights["draft"]


def _configs():
    return module.named_pair("small", "small:layers=1")


def _placed():
    return module.Placement.parse(None), jax.devices()[:1]


def test_a_rule_of_several_drafts_is_planned_with_them():
    asked = ASKED | {"topology": "v5e:1x1", "kinds": ("cycle",), "temperature": 1.0}
    one = kj.plan("small", "small:layers=1", verifier="exact", **asked)
    four = kj.plan("small", "small:layers=1", verifier="kseq:drafts=4", **asked)
    assert 3.9 < four.caches / one.caches < 4.1 and four.largest < one.largest / 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bits": 3}, "bits and draft_bits are 8 or 4"),
        ({"cache_bits": 4}, "cache_bits 8"),
        ({"kinds": ("refil",)}, "kinds are some of prefill, cycle, refill, not refil"),
        ({"kinds": ()}, "not none"),
        ({"prompt_tokens": 0}, "prompt_tokens starts at 1"),
        ({"prompt_tokens": 600}, "make 616, and the models take 512"),
        ({"draft_bits": 8}, "there is none: name it"),
        ({"draft_vocab": 8}, "draft_vocab are of a draft, and there is none: name it"),
        ({"draft": "small", "draft_vocab": 0}, "a list of tokens or how many, from 1 to"),
        ({"draft": "small", "draft_vocab": "nowhere.txt"}, "nowhere.txt: No such file"),
        ({"target": "tinny"}, "no shape of"),
        ({"target": "four", "draft": "eagle3"}, r"write eagle3:vocab=N with an N from 1 to 256, not 'eagle3'"),
        ({"target": "four", "draft": "eagle3:vocab=257"}, "with an N from 1 to 256"),
        ({"target": "four", "draft": "eagle3:rows=2"}, "eagle3:vocab=N"),
        ({"draft": "eagle3:vocab=64"}, "reads layers of a target that has 3 or more, not 2"),
        ({"target": "four", "draft": "eagle3:vocab=64", "draft_vocab": 9}, "is a head of its own: leave it out"),
        ({"target": "eagle3:vocab=64"}, "no model of its own: give it as the draft"),
    ],
)
def test_what_cannot_be_planned_is_refused(given, says):
    with pytest.raises(InputError, match=says):
        kj.plan(**({"target": "small"} | ASKED | given))


def test_models_that_fit_no_device_are_refused_before_anything_compiles():
    with pytest.raises(
        InputError, match=r"would hold 141.* and has 14.7 GB for them; 126.6 GB are missing: take .*such as v5e:4x4,"
    ):
        kj.plan("llama-3.1-70b", **(ASKED | {"topology": "v5e:1x1", "report": pytest.fail}))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "small", "--json"], "--json is of a plan with --topology"),
        (["--target", "small", "--context", "9"], "--context is of a plan with --topology"),
        (["--table", "--topology", "v5e:1x1"], "leave out --topology"),
        (["--target", "small", "--topology", "v5e:1x1", "--device", "v5e"], "leave out --device"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, says, capsys):
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_context_that_no_row_can_hold_is_refused():
    for context in (0, 577):
        with pytest.raises(InputError, match="context is of 1 to 576 tokens"):
            kj.plan("llama-3.2-1b", topology="v5e:1x1", max_new_tokens=64, context=context)
