"""What every test relies on: one thread, fixed seeds, deterministic examples."""

import os

# Before torch starts its threads: the tests run in several processes, and small loops gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import hypothesis
import pytest
import torch

# Compilation takes seconds, so no deadline; the same examples in every run, so that a failure is everybody's.
hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    # Shrinking repeats captures for minutes: the thorough profile does it.
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("deterministic"),
    derandomize=False,
    max_examples=500,
    phases=list(hypothesis.Phase),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
