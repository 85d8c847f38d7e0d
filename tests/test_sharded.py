"""Scans over a sequence whose parts lie on several processes (`sharded_worker.py` is one of them)."""

from pathlib import Path

import pytest
import sharded_worker
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh

import functorch_hops as fh
from functorch_hops.ops.sharded.messages import position

QUICK = [function.__name__ for function in sharded_worker.QUICK]
SLOW = [function.__name__ for function in sharded_worker.SLOW]


def test_two_ranks_compute_what_a_loop_over_the_whole_computes(tmp_path: Path) -> None:
    run_ranks("sharded_worker.py", 2, tmp_path / "store", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "names"), [(2, SLOW), (4, QUICK)], ids=["compiled", "four"])
def test_more_ranks_and_modes(size: int, names: list[str], tmp_path: Path) -> None:
    run_ranks("sharded_worker.py", size, tmp_path / "store", names)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def total(carry, x):
    return carry + x, carry * x


def test_groups_by_object_and_by_mesh(one_rank) -> None:
    xs = torch.arange(4.0)
    expected = fh.scan(total, torch.tensor(0.0), xs)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("batch", "sequence"))
    for group in (None, dist.group.WORLD, mesh["sequence"]):
        torch.testing.assert_close(fh.sharded_scan(total, torch.tensor(0.0), xs, group=group), expected)
    compiled = torch.compile(
        lambda x: fh.sharded_scan(total, x[0], x, group=mesh["sequence"]), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(xs), fh.scan(total, xs[0], xs))
    with pytest.raises(fh.ArgumentValueError, match="the mesh has several dimensions"):
        fh.sharded_scan(total, 0.0, xs, group=mesh)
    with pytest.raises(fh.ArgumentTypeError, match="no process group"):
        fh.sharded_scan(total, 0.0, xs, group="sequence")


def test_a_function_that_holds_a_group_is_traced_once_and_without_a_warning(one_rank) -> None:
    group = dist.group.WORLD

    @fh.jit(backend="eager")
    def prefixes(xs):
        return fh.sharded_associative_scan(torch.add, xs, group=group)

    with fh.log_captures(quiet=True) as events:
        for _ in range(3):
            torch.testing.assert_close(prefixes(torch.arange(4)), torch.tensor([0, 1, 3, 6]))
    assert [event.what for event in events if event.name == "prefixes"] == ["capture"]


def test_refusals_of_local_parts_and_of_export(one_rank) -> None:
    with pytest.raises(fh.ArgumentValueError, match="a rank has no element"):
        fh.sharded_associative_scan(torch.add, torch.ones(0))

    class Module(torch.nn.Module):
        def forward(self, xs):
            return fh.sharded_scan(total, torch.tensor(0.0), xs)

    with pytest.raises(fh.CaptureError, match="an exported program has no process group"):
        torch.export.export(Module(), (torch.ones(3),))


def test_a_group_of_another_size_is_refused(one_rank) -> None:
    """The number of rounds is that of the capture."""
    with pytest.raises(RuntimeError, match="had 2 ranks at the capture, and has 1"):
        position(dist.group.WORLD.group_name, 2, False, torch.device("cpu"))
