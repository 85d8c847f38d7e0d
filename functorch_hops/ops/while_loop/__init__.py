"""``while_loop``: a loop whose trip count only a run knows.

Static parameters: ``bodies`` are the condition and the body, both ``(carry..., consts...) -> ...``, ``n_carry``,
``flags``, and ``checkpoints``: how many carries reverse mode saves, None for what it reads of each step. Operands: the
initial carry, the constants. Outputs: the final carry and, where the loop stacks (``flags`` is not empty), the stacks
over the iterations: the body's outputs beyond the carry, with the bool vector ``valid`` - which iterations happened -
at the places in ``flags``. The gradient rule adds stacks; each time it is applied, it adds a flag before its own.
"""

from ...capture.passes.fission import no_products
from ...hop import Hop, Rules
from .batching import while_loop_batch
from .eager import while_loop_abstract, while_loop_run
from .forwarding import while_loop_forward
from .hoisting import while_loop_hoist
from .jvp import while_loop_jvp
from .liveness import while_loop_prune
from .lowering import while_loop_native
from .reached import while_loop_reached
from .vjp import while_loop_augment, while_loop_pullback

__all__ = ["while_loop_op"]

while_loop_op = Hop(
    "while_loop",
    Rules(
        run=while_loop_run,
        abstract=while_loop_abstract,
        reached=while_loop_reached,
        batch=while_loop_batch,
        jvp=while_loop_jvp,
        augment=while_loop_augment,
        pullback=while_loop_pullback,
        prune=while_loop_prune,
        forward=while_loop_forward,
        hoist=while_loop_hoist,
        fission=no_products,
        native=while_loop_native,
    ),
)
