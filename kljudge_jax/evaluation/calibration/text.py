"""What a calibration found, in words for the person who asked."""

from __future__ import annotations

from collections.abc import Sequence

from kljudge_jax.evaluation.calibration.run import Check, Plan, Tested, chosen, needed
from kljudge_jax.text_table import aligned, ranged


def table(plan: Plan, tested: Sequence[Tested]) -> str:
    """A line a threshold, for a terminal."""
    most = f"loss at most ({100 * (1 - plan.delta):g} %)"
    if plan.without_answers:
        head = ["rule", "same answer", "other", most, "p", "promised", "mean acceptance length"]
    else:
        head = ["rule", "right", "plain right", "lost", "won", most, "p", "promised", "mean acceptance length"]
    rows = [head]
    for one in tested:
        counts = [f"{one.right} of {one.outcome.n}"]
        counts += [str(one.plain_right)] if not plan.without_answers else []
        counts += [str(count) for count in (one.outcome.lost, one.outcome.won) if count is not None]
        length = ranged(one.mean_acceptance_length, one.mean_acceptance_length_interval)
        loss, promised = f"{100 * one.upper_bound:.2f} points", "yes" if one.promised else "no"
        rows.append([one.rule, *counts, loss, f"{one.p_value:.3g}", promised, length])
    return aligned(rows) + "\n"


def verdict(plan: Plan, tested: Sequence[Tested]) -> str:
    """What is promised, or why nothing is; and the option to go on with."""
    budget, best = f"{100 * plan.budget:g}", chosen(tested)
    of_what = "of agreement with" if plan.without_answers else "of accuracy against"
    lines = []
    if best is None:
        lines.append(f"Nothing is promised: use exact decoding.\n  --verifier exact --draft-length {_length(plan)}")
    else:
        lines.append(
            f"Promised: {best.rule} loses at most {budget} points {of_what} the target's own answers, on prompts from "
            f"the same source (risk {plan.delta:g}).\n  --verifier {best.rule} --draft-length {_length(plan)}"
        )
    if tested and not tested[-1].promised:
        lines.append(_why_not(plan, tested[-1]))
    elif tested:
        lines.append("Every threshold passed: more relaxed ones may pass too, but have to be listed before a run.")
    return "\n".join(lines)


def too_few(plan: Plan) -> str:
    """That the set is too small for the budget, whatever the answers would be."""
    return (
        f"{plan.n} prompts are too few: even if no answer changed, a budget of {100 * plan.budget:g} points at risk "
        f"{plan.delta:g} takes {plan.smallest_n} (--n). No answer was made."
    )


def told(check: Check) -> str:
    """What the chosen threshold costs on other problems."""
    outcome, (low, high) = check.outcome, check.interval
    counts = f"{outcome.lost} lost, {outcome.won} won" if outcome.won is not None else f"{outcome.lost} other answers"
    says, points = "loses", outcome.loss
    if points < 0:
        says, points, low, high = "gains", -points, -high, -low
    return (
        f"Checked on {outcome.n} fresh prompts ({check.split}): {check.rule} {says} {100 * points:.2f} points "
        f"({100 * low:.2f} to {100 * high:.2f}, 95 %; {counts}; {check.right} right, plain {check.plain_right}) at "
        f"a mean acceptance length of {ranged(check.mean_acceptance_length, check.mean_acceptance_length_interval)}."
    )


def _why_not(plan: Plan, failed: Tested) -> str:
    more = needed(plan, failed)
    said = f"{failed.rule} is not promised"
    if failed.outcome.loss >= plan.budget:
        return f"{said}: here it lost {100 * failed.outcome.loss:.2f} points."
    if more is None:
        return f"{said}: it lost {100 * failed.outcome.loss:.2f} points here, too near the budget for any set of ours."
    return (
        f"{said}: {plan.n} prompts leave too much doubt. If more went like these, about {more} would do; draw them "
        "anew (another --seed, another --out), for a set that grows until it passes promises less."
    )


def _length(plan: Plan) -> int | str:
    return plan.thresholds[0].draft_length
