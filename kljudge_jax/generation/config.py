"""How answers are decoded: one configuration for every call and every command that decodes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from kljudge_jax.errors import InputError
from kljudge_jax.generation.chat_template import TemplateArgs
from kljudge_jax.generation.sections import SectionIds, read_section_ids

if TYPE_CHECKING:
    from kljudge_jax.core.controller import Adaptive
    from kljudge_jax.core.protocols import Drafter


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How answers are decoded. Each field is also the option of that name of every command that decodes.

    The metadata of a field are what its option says (`help`), and its bounds, which hold in Python too.

    Attributes:
      max_new_tokens: the most tokens of an answer.
      temperature: 0 is greedy.
      top_k: when sampling, keeps the k likeliest tokens of either model; 0 is all.
      top_p: when sampling, keeps the likeliest tokens with this much probability together; 1.0 is all.
      min_p: when sampling, drops tokens below this share of the likeliest one's probability; 0 drops none.
      stop: strings that end an answer where they begin.
      draft_length: draft tokens a cycle, K >= 1, or `Adaptive(...)`; a spec string such as "adaptive:maximum=8" is
        read as what it names.
      drafter: what proposes them: `ModelDraft()`, `PromptLookup(ngram)`, `SelfDraft(layers)`, or a spec string such as
        "lookup:3".
      seed: of the draws when sampling; where problems are chosen, of the choice too.
      batch: answers decoded side by side; one that waits takes the slot of one that ended. None is all of them.
      section_ids: the token that begins a thinking block and the one that ends it, for rules that read
        `VerifyInputs.section`: two ids, or two texts that are one token each. "auto": <think> and </think>, where a
        rule names `section` in what it needs. None tells rules of none.
      template_args: what the chat template is told beside the messages, such as `{"enable_thinking": False}`; also as
        texts, "enable_thinking=false".

    Raises:
      InputError: a value that cannot be.
    """

    max_new_tokens: int = field(default=256, metadata={"help": "the most tokens of an answer", "least": 1})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy"})
    top_k: int = field(default=0, metadata={"help": "keep the k likeliest tokens; 0 is all"})
    top_p: float = field(default=1.0, metadata={"help": "keep this much probability mass"})
    min_p: float = field(default=0.0, metadata={"help": "drop tokens below this share of the likeliest one's"})
    stop: str | Sequence[str] = field(default=(), metadata={"help": "ends the answer; may be repeated"})
    draft_length: int | Adaptive | str = field(
        default=8,
        metadata={
            "help": "draft tokens a cycle: a number, or adaptive:maximum=8 (as many as pay, by the time that cycles "
            "take), or adaptive:maximum=8,cost=size (by the sizes of the models)"
        },
    )
    drafter: Drafter | str = field(
        default="model",
        metadata={
            "help": "what proposes: model (--draft), lookup:3 (n-grams of the text), self:2 (the target's first layers)"
        },
    )
    seed: int = field(default=0, metadata={"help": "of the draws when sampling", "least": 0, "most": 2**63 - 1})
    batch: int | None = field(
        default=None,
        metadata={
            "help": "answers decoded side by side: a problem that waits takes the slot of an answer that ended",
            "least": 1,
        },
    )
    section_ids: SectionIds = field(
        default="auto",
        metadata={
            "help": "the tokens that begin and end a thinking block, for rules that read sections: 151667,151668, or "
            "'<think>,</think>', which is auto; or none"
        },
    )
    template_args: Mapping[str, Any] | str | Sequence[str] = field(
        default=(),
        metadata={"help": "what the chat template is told, such as enable_thinking=false; may be repeated"},
    )

    def __post_init__(self) -> None:
        import jax
        import numpy as np

        from kljudge_jax.core.controller import Adaptive
        from kljudge_jax.core.sampling import Sampling
        from kljudge_jax.drafters.specs import parse_draft_length, parse_drafter

        # Traced for its checks alone, which starts no backend: a configuration may be made before hosts join.
        jax.eval_shape(lambda: Sampling.create(self.temperature, self.top_k, self.top_p, self.min_p))
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            _check_bounds(one, value)
            if isinstance(value, np.number):  # equal configurations are alike, in JSON too
                object.__setattr__(self, one.name, value.item())
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop holds strings of at least one character, got {self.stop!r}")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "section_ids", read_section_ids(self.section_ids))
        object.__setattr__(self, "template_args", TemplateArgs(self.template_args))
        if not isinstance(self.draft_length, Adaptive):
            object.__setattr__(self, "draft_length", parse_draft_length(str(self.draft_length)))
        if isinstance(self.drafter, str):
            object.__setattr__(self, "drafter", parse_drafter(self.drafter))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def length(self) -> int | Adaptive:
        """`draft_length`, for a type checker: no spec string is left of it."""
        assert not isinstance(self.draft_length, str)
        return self.draft_length

    @property
    def longest(self) -> int:
        """The most draft tokens of a cycle."""
        return self.length if isinstance(self.length, int) else self.length.maximum

    def arguments(self) -> dict[str, Any]:
        """The arguments that `generate` and `stream` share: all but the key, and how many are decoded side by side."""
        return {name: getattr(self, name) for name in _FIELDS if name not in ("seed", "batch")}

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, lengths and drafters as spec strings; what is left to its default of `stop`,
        `section_ids` and `template_args` is not mentioned."""
        from kljudge_jax.drafters.specs import spec_of

        found = {name: getattr(self, name) for name in _FIELDS}
        found |= {"draft_length": spec_of(self.draft_length), "drafter": spec_of(self.drafter), "stop": list(self.stop)}
        ids = self.section_ids
        found["section_ids"] = "" if ids == "auto" else "none" if ids is None else list(ids)
        found["template_args"] = dict(TemplateArgs(self.template_args))
        return {name: value for name, value in found.items() if name not in _RARE or value}


_FIELDS = tuple(one.name for one in dataclasses.fields(DecodingConfig))
_RARE = ("stop", "section_ids", "template_args")


class DecodingFields(TypedDict, total=False):
    """The fields of `DecodingConfig`, as a call takes some of them by keyword; a test holds the two together."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    stop: str | Sequence[str]
    draft_length: int | Adaptive | str
    drafter: Drafter | str
    seed: int
    batch: int | None
    section_ids: SectionIds
    template_args: Mapping[str, Any] | str | Sequence[str]


# Where the defaults of a call, and of the command of that name, are others.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bench": {"max_new_tokens": 64},
    "calibrate": {"batch": 8},
    "evaluate": {"batch": 8},
    "plan": {"batch": 8},
    "sweep": {"batch": 8},
}


def configured(call: str, config: DecodingConfig | None, fields: DecodingFields) -> DecodingConfig:
    """A call's configuration: what it was given, or else its default one, with some fields changed."""
    return dataclasses.replace(DecodingConfig(**DEFAULTS.get(call, {})) if config is None else config, **fields)


Call = TypeVar("Call", bound=Callable[..., Any])


def takes_config(call: Call) -> Call:
    """A call that is also given a `config`: its fields stand for the keywords that are not given."""
    accepted = inspect.signature(call).parameters

    @functools.wraps(call)
    def called(*positional: Any, config: DecodingConfig | None = None, **given: Any) -> Any:
        if config is not None:
            import jax

            fields = config.arguments() | {"key": jax.random.key(config.seed), "batch_size": config.batch}
            given = {name: value for name, value in fields.items() if name in accepted} | given
        return call(*positional, **given)

    return cast(Call, called)


def _check_bounds(one: dataclasses.Field, value: Any) -> None:
    """Raises `InputError` for a number outside what the field's metadata bound."""
    least, most = one.metadata.get("least"), one.metadata.get("most")
    if least is None or value is None:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise InputError(f"{one.name} is a whole number, got {value!r}")
    if value < least or (most is not None and value > most):
        upper = f" and ends at {most}" if most is not None else ""
        raise InputError(f"{one.name} starts at {least}{upper}, got {value}")
