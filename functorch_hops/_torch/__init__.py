"""Every private torch API that this package uses, in one file for each subsystem of torch.

Checked against torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0. Nothing outside this room imports a ``torch._*`` name, so a new
torch release is checked here; Inductor's API has a room of its own (``lowering/inductor.py``). The rest of the package
writes ``_torch.name`` and does not ask in which file that is.
"""

from .ambient import *
from .autograd import *
from .compilers import *
from .cuda_graphs import *
from .dispatch import *
from .distributed import *
from .forward_rules import *
from .holders import *
from .hooks import *
from .hops import *
from .imports import *
from .inductor_settings import *
from .inference import *
from .interrupts import *
from .legacy_vmap import *
from .levels import *
from .logs import *
from .open_lanes import *
from .parts import *
from .pointwise import *
from .process import *
from .recording import *
from .shapes import *
from .stepwise import *
from .symbolic import *
from .symbols import *
from .tensors import *
from .tracing import *
from .trees import *
