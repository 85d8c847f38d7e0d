"""Run random programs and print those that differ from plain Python.

    python tests/fuzz --seeds 0:500 --backend inductor
    python tests/fuzz --seeds 17 --backend inductor --shrink

Programs run in another process, in groups that are compiled as one function. If a group fails, each program is tried
alone; if the process dies or hangs, that is the failure, and the next seeds get a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_ANSWER = "fuzz: "


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:100", help="a seed, or first:last, the last one excluded")
    parser.add_argument("--backend", default="inductor", help="one of MODES in checking.py")
    parser.add_argument("--device", default="cpu", help="where programs run")
    parser.add_argument("--group", type=int, default=8, help="programs that are compiled as one function")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for a group")
    parser.add_argument("--shrink", type=float, nargs="?", const=300.0, help="seconds to shrink each failing program")
    parser.add_argument("--show", action="store_true", help="print the programs and do nothing else")
    parser.add_argument("--brief", action="store_true", help="leave out the texts of failing programs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return _work(arguments.device)
    first, _, last = arguments.seeds.partition(":")
    seeds = list(range(int(first), int(last or int(first) + 1)))
    if arguments.show:
        from fuzz.generator import generate

        for seed in seeds:
            print(generate(seed))
        return 0
    return _run(seeds, arguments)


# ---------------------------------------------------------------------------------------------------------------------
# the process that watches


def _run(seeds: list[int], arguments: argparse.Namespace) -> int:
    worker, counts, start = Worker(arguments.device), Counter[str](), time.monotonic()
    try:
        for at in range(0, len(seeds), arguments.group):
            group = seeds[at : at + arguments.group]
            counts["programs"] += len(group)
            if arguments.backend == "inductor":
                # What fails with the same graph uncompiled would only spoil its group.
                group = [seed for seed in group if _is_right(seed, "eager", worker, counts, arguments)]
            if arguments.backend in ("plain", "captured"):
                for seed in group:
                    _is_right(seed, arguments.backend, worker, counts, arguments)
            else:
                _search(group, worker, counts, arguments)
            print(f"{at + arguments.group} of {len(seeds)} programs", file=sys.stderr, flush=True)
    finally:
        worker.stop()
    seconds = time.monotonic() - start
    print(f"{arguments.backend}: {dict(counts)} in {seconds:.0f} s, seeds {seeds[0]}:{seeds[-1] + 1}", flush=True)
    return int(len(counts) > 1)


def _search(group: list[int], worker: Worker, counts: Counter[str], arguments: argparse.Namespace) -> bool:
    """Find the programs of a group that fail, by halves."""
    if len(group) < 2:
        return all(_is_right(seed, arguments.backend, worker, counts, arguments) for seed in group)
    failure = worker.ask({"seeds": group, "mode": arguments.backend}, arguments.timeout)
    if failure is None:
        return True
    middle = len(group) // 2
    halves = [_search(half, worker, counts, arguments) for half in (group[:middle], group[middle:])]
    if all(halves):
        counts["together"] += 1
        print(f"seeds {group} together: {failure['kind']}: {failure['message']}", flush=True)
    return False


def _is_right(seed: int, mode: str, worker: Worker, counts: Counter[str], arguments: argparse.Namespace) -> bool:
    failure = worker.ask({"seeds": [seed], "mode": mode}, arguments.timeout)
    if failure:
        counts["refused" if failure["is_refused"] else failure["kind"]] += 1
        _report(seed, mode, failure, worker, arguments)
    return failure is None


def _report(seed: int, mode: str, failure: dict[str, Any], worker: Worker, arguments: argparse.Namespace) -> None:
    note = " (in plain eager too)" if failure["is_refused"] else ""
    print(f"seed {seed} {mode}: {failure['kind']}{note}: {failure['context']}: {failure['message']}", flush=True)
    source = failure["source"]
    if arguments.shrink and not failure["is_refused"]:
        from fuzz.generator import Program
        from fuzz.shrinking import shrunk

        def fails(program: Program) -> bool:
            request = {"source": program.source, "is_trained": program.is_trained, "mode": mode}
            found = worker.ask(request, arguments.timeout)
            return bool(found) and found["kind"] == failure["kind"] and not found["is_refused"]

        program = Program(seed, source, failure["context"], failure["context"] == "trained")
        source = shrunk(program, fails, arguments.shrink).source
    if not arguments.brief:
        print(source, flush=True)


class Worker:
    """A process that checks one group after the other, and is started again when it has died, hung or grown old."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: subprocess.Popen[str] | None = None
        self.age = 0

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """The failure of a group, as a dictionary."""
        if self.process is None or self.age > 200:
            self.stop()
            self._start()
        assert self.process is not None and self.process.stdin and self.process.stdout
        self.age += 1
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        end = time.monotonic() + timeout
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return self._lost(request, "hang", f"no answer in {timeout:.0f} s")
            line = self.process.stdout.readline()
            if not line:
                code = self.process.wait()
                self.errors.seek(0)
                said = self.errors.read().strip().splitlines()
                return self._lost(request, "crash", f"exit code {code}: {' / '.join(said[:2])}")
            if line.startswith(_ANSWER):
                answer: dict[str, Any] | None = json.loads(line[len(_ANSWER) :])
                return answer

    def _start(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the process is stopped)
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            str(Path(__file__).parent),
            "--worker",
            "--device",
            self.device,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1
        )
        self.age = 0

    def _lost(self, request: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
        self.stop()
        failure = {
            "kind": kind,
            "message": message,
            "is_refused": False,
            "source": request.get("source", ""),
            "context": "",
        }
        if len(request.get("seeds", ())) == 1:
            from fuzz.generator import generate

            program = generate(request["seeds"][0])
            failure.update(source=program.source, context=program.context)
        return failure

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.errors.close()
        self.process = None


# ---------------------------------------------------------------------------------------------------------------------
# the process that runs programs


def _work(device: str) -> int:
    import torch

    from fuzz.checking import failure_of
    from fuzz.generator import Program, generate

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "source" in request:
            programs = [Program(0, request["source"], "", request["is_trained"])]
        else:
            programs = [generate(seed) for seed in request["seeds"]]
        with torch.device(device):
            failure = failure_of(programs, request["mode"])
        answer = None
        if failure is not None:
            answer = {
                "kind": failure.kind,
                "message": failure.message,
                "is_refused": failure.is_refused,
                "context": programs[0].context,
                "source": programs[0].source,
            }
        print(_ANSWER + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
