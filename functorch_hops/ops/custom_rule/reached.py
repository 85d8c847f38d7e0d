"""What reaches which outputs of a call with a derivative of its own: the rule alone knows, so all of them."""

from __future__ import annotations

from ...capture.subgraph import Mask, StaticParameters

__all__ = ["custom_rule_reached"]


def custom_rule_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    is_random = by == "lane" and static.random
    return (is_random or any(sources),) * static["n_outputs"]
