"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function."""

from dataclasses import replace

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .deferred import deferred_call_vjp_backward, deferred_call_vjp_forward
from .op import closed_call_op, deferred_call_op, taped_call_op
from .rules import (
    closed_call_abstract_eval,
    closed_call_batch,
    closed_call_dependent_outputs,
    closed_call_impl,
    closed_call_jvp,
    closed_call_lower,
    closed_call_passthrough,
    closed_call_prune,
    closed_call_vjp_backward,
    closed_call_vjp_forward,
)
from .taped import taped_call_vjp_backward, taped_call_vjp_forward

_rules = Rules(
    impl=closed_call_impl,
    abstract_eval=closed_call_abstract_eval,
    dependent_outputs=closed_call_dependent_outputs,
    batch=closed_call_batch,
    jvp=closed_call_jvp,
    vjp_forward=closed_call_vjp_forward,
    vjp_backward=closed_call_vjp_backward,
    prune=closed_call_prune,
    passthrough=closed_call_passthrough,
    hoist=not_a_loop,
    products=no_products,
    redraw=not_redrawn,
    lower=closed_call_lower,
    native_loop=no_native_loop,
    form=no_form,
)
closed_call_op.register(_rules)
deferred_call_op.register(
    replace(_rules, vjp_forward=deferred_call_vjp_forward, vjp_backward=deferred_call_vjp_backward)
)
taped_call_op.register(replace(_rules, vjp_forward=taped_call_vjp_forward, vjp_backward=taped_call_vjp_backward))
