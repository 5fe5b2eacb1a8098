"""The reader of compiled programs, on texts whose traffic is known by hand, and on a program of this machine."""

import collections

import jax
import jax.numpy as jnp
import pytest

from kljudge_jax.evaluation.plan.hlo import Program

# A cycle that reads 4 MB of weights in each of 7 turns, a quarter of a cache, and writes one row of it; what lies in
# S(1) is no traffic.
# ruff: noqa: E501 - a compiler's lines are as long as they are
TEXT = """HloModule jit_run, is_scheduled=true

%whole (p.0: f32[8,1024], p.1: f32[1024,1024]) -> f32[8,1024] {
  %p.0 = f32[8,1024]{1,0} parameter(0)
  %p.1 = f32[1024,1024]{1,0} parameter(1)
  %renamed = f32[1024,1024]{1,0} bitcast(%p.1)
  ROOT %dot = f32[8,1024]{1,0} convolution(%p.0, %renamed), dim_labels=bf_io->bf
}

%part (q.0: f32[4,512], q.1: s32[]) -> f32[1,512] {
  %q.0 = f32[4,512]{1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  ROOT %slice = f32[1,512]{1,0} dynamic-slice(%q.0, %q.1, %q.1), dynamic_slice_sizes={1,512}
}

%row (r.0: f32[4,512], r.1: f32[1,512], r.2: s32[]) -> f32[4,512] {
  %r.0 = f32[4,512]{1,0} parameter(0)
  %r.1 = f32[1,512]{1,0} parameter(1)
  %r.2 = s32[] parameter(2)
  ROOT %put = f32[4,512]{1,0} dynamic-update-slice(%r.0, %r.1, %r.2, %r.2)
}

%rows (v.0: f32[4,512], v.1: s32[2,1], v.2: f32[2,512]) -> f32[4,512] {
  %v.0 = f32[4,512]{1,0} parameter(0)
  %v.1 = s32[2,1]{1,0} parameter(1)
  %v.2 = f32[2,512]{1,0} parameter(2)
  ROOT %scattered = f32[4,512]{1,0} scatter(%v.0, %v.1, %v.2), to_apply=%last
}

%draft (d: (s32[], f32[8,1024], f32[1024,1024])) -> (s32[], f32[8,1024], f32[1024,1024]) {
  %d = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%d), index=0
  %x = f32[8,1024]{1,0:T(8,128)S(1)} get-tuple-element(%d), index=1
  %w = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%d), index=2
  %y = f32[8,1024]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%whole, backend_config={"estimated_cycles":"100"}
  %sum = f32[8,1024]{1,0:T(8,128)S(1)} all-reduce(%y), replica_groups={}, to_apply=%whole
  ROOT %next = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}) tuple(%i, %sum, %w)
}

%under (c: (s32[], f32[8,1024], f32[1024,1024])) -> pred[] {
  %c = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%c), index=0
  %seven = s32[] constant(7)
  ROOT %less = pred[] compare(%at, %seven), direction=LT
}

%cycle (s: (s32[], f32[8,1024], f32[1024,1024], f32[4,512])) -> (s32[], f32[8,1024], f32[1024,1024], f32[4,512]) {
  %s = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, f32[4,512]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %a = f32[8,1024]{1,0:S(1)} get-tuple-element(%s), index=1
  %b = f32[1024,1024]{1,0} get-tuple-element(%s), index=2
  %cache = f32[4,512]{1,0} get-tuple-element(%s), index=3
  %in = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}) tuple(%n, %a, %b)
  %out = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}) while(%in), condition=%under, body=%draft
  %some = f32[1,512]{1,0:S(1)} fusion(%cache, %n), kind=kLoop, calls=%part
  %put.1 = f32[4,512]{1,0} fusion(%cache, %some, %n), kind=kLoop, calls=%row
  %moved = f32[4,512]{0,1} copy(%put.1)
  ROOT %end = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, f32[4,512]{1,0}) tuple(%n, %a, %b, %put.1)
}

%running (t: (s32[], f32[8,1024], f32[1024,1024], f32[4,512])) -> pred[] {
  %t = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, f32[4,512]{1,0}) parameter(0)
  ROOT %go = pred[] custom-call(%t), custom_call_target="go"
}

ENTRY %main (state: (s32[], f32[8,1024], f32[1024,1024], f32[4,512])) -> (s32[], f32[8,1024], f32[1024,1024], f32[4,512]) {
  %state = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, f32[4,512]{1,0}) parameter(0)
  ROOT %all = (s32[], f32[8,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, f32[4,512]{1,0}) while(%state), condition=%running, body=%cycle
}
"""
WEIGHTS, ROW, CACHE = 4 << 20, 2048, 8192


def test_a_cycles_traffic_is_counted_by_what_is_really_read_and_written():
    found = Program(TEXT).cycle()
    assert found.read == 7 * WEIGHTS + ROW + CACHE  # weights, one row of the cache, and the cache that is copied
    assert found.written == ROW + CACHE
    assert found.collectives == {"all-reduce": 7} and found.collective_bytes == {"all-reduce": 7 * 32768}
    assert found.copies == {CACHE: 1} and found.cycles == 700
    assert list(found.loops) == [(7, "")]


@pytest.mark.parametrize(
    ("old", "new", "more"), [("constant(7)", "constant(9)", 2 * WEIGHTS), ("copy(", "bitcast(", -CACHE)]
)
def test_what_is_read_follows_the_text(old, new, more):
    assert Program(TEXT.replace(old, new)).cycle().read == 7 * WEIGHTS + ROW + CACHE + more


def test_a_scatter_moves_the_rows_that_it_writes():
    scattered = TEXT.replace("%put.1 = f32[4,512]{1,0} fusion(%cache, %some, %n), kind=kLoop, calls=%row", SCATTER)
    assert scattered != TEXT
    found = Program(scattered).cycle()
    assert found.read == 7 * WEIGHTS + ROW + CACHE + 2 * ROW + 2 * 4  # the rows, and where they go
    assert found.written == 2 * ROW + CACHE


SCATTER = """%new = f32[2,512]{1,0} get-tuple-element(%s), index=4
  %at = s32[2,1]{1,0} get-tuple-element(%s), index=5
  %put.1 = f32[4,512]{1,0} fusion(%cache, %at, %new), kind=kInput, calls=%rows"""

BRANCHES = """
%small (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %nx = f32[8]{0} negate(%x)
}

%large (y: f32[4096]) -> f32[4096] {
  %y = f32[4096]{0} parameter(0)
  ROOT %ny = f32[4096]{0} negate(%y)
}

ENTRY %main (p: pred[]) -> f32[8] {
  %p = pred[] parameter(0)
  ROOT %c = f32[8]{0} conditional(%p, %p, %p), true_computation=%small, false_computation=%large
}
"""


def test_of_a_conditional_the_branch_that_moves_most_counts():
    found = Program(BRANCHES).traffic()
    assert (found.read, found.written) == (16384, 16384)


def test_a_program_of_this_machine_is_read():
    def run(w, x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x)

    compiled = jax.jit(run).lower(jnp.ones((256, 256)), jnp.ones((4, 256))).compile()
    program = Program(compiled.as_text())
    assert not collections.Counter(program.traffic().collectives)
    assert program.traffic().moved >= 256 * 256 * 4  # its turns are in data, not in the text: once is known


# Two rows of 4096 slots, four heads: queries and what they read lie in VMEM, scales beside the caches.
KERNEL = """HloModule jit_pass, is_scheduled=true

ENTRY %main (n: s32[], k: bf16[2,4,4096,128], v: bf16[2,4,4096,128], s: f32[2,4,1,4096], q: bf16[2,4,9,128]) -> bf16[2,4,9,128] {
  %n = s32[] parameter(0)
  %k = bf16[2,4,4096,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %v = bf16[2,4,4096,128]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %s = f32[2,4,1,4096]{3,2,1,0:T(1,128)} parameter(3)
  %q = bf16[2,4,9,128]{3,2,1,0:T(8,128)(2,1)} parameter(4)
  ROOT %kernel = bf16[2,4,9,128]{3,2,1,0:T(8,128)(2,1)S(1)} custom-call(%n, %q, %k, %v, %s), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/written_attention_128_of_4096_for_9_window_WINDOW/pallas_call"}
}
"""


@pytest.mark.parametrize(
    ("window", "written", "slots"),
    [(0, None, 4096), (0, 1024, 1024), (0, 1025, 1152), (0, 4096, 4096), (256, 1025, 512)],
)
def test_a_kernel_that_reads_written_blocks_is_counted_by_them(window, written, slots):
    program = Program(KERNEL.replace("WINDOW", str(window)), written)
    side, scales, query = 2 * 4 * slots * 128 * 2, 2 * 4 * slots * 4, 2 * 4 * 9 * 128 * 2
    found = program.traffic()
    assert (found.blocks, found.read, found.written) == (2 * side + scales, 2 * side + scales + query, 0)
    assert found.times(3).blocks == 3 * found.blocks and found.custom_calls["tpu_custom_call"] == 1
