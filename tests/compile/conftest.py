"""Each test begins with a Dynamo that has traced nothing."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _dynamo_reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
