"""Judge decoding as pure functions of any model: protocols, state, one cycle, and the loop of them."""

from kljudge_jax.core.controller import Adaptive as Adaptive
from kljudge_jax.core.loop import Entries as Entries
from kljudge_jax.core.loop import admit as admit
from kljudge_jax.core.loop import decode as decode
from kljudge_jax.core.loop import init as init
from kljudge_jax.core.protocols import Cache as Cache
from kljudge_jax.core.protocols import Context as Context
from kljudge_jax.core.protocols import Draft as Draft
from kljudge_jax.core.protocols import Drafter as Drafter
from kljudge_jax.core.protocols import Features as Features
from kljudge_jax.core.protocols import Model as Model
from kljudge_jax.core.protocols import Models as Models
from kljudge_jax.core.protocols import Request as Request
from kljudge_jax.core.protocols import Window as Window
from kljudge_jax.core.state import LoopState as LoopState
from kljudge_jax.core.state import Numbers as Numbers
from kljudge_jax.core.state import Prefill as Prefill
from kljudge_jax.core.state import Result as Result
from kljudge_jax.core.state import Shape as Shape
from kljudge_jax.core.state import numbers as numbers
from kljudge_jax.core.state import result as result
from kljudge_jax.core.verify import check_on_policy as check_on_policy
