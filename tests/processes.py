"""A program in a process of its own, forked from one that has imported torch: an import takes seconds."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
import warnings
from multiprocessing.connection import Connection

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["torch", "functorch_hops"])


def in_a_process(program: str, seconds: float) -> None:
    """Fails if the program raises, crashes, or does not end in time."""
    receiver, sender = _server.Pipe(duplex=False)
    process = _server.Process(target=_run, args=(program, sender))
    process.start()
    sender.close()
    process.join(seconds)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs, f"the program runs for more than {seconds} seconds"
    with receiver:
        try:
            said = receiver.recv()
        except EOFError:
            said = f"exit code {process.exitcode}"
    assert said == _DONE, said
    process.close()


_DONE = "done"


def _run(program: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    try:
        exec(compile(program, "<program>", "exec"), vars(sys.modules["__main__"]))  # Dynamo imports it by its name
    except BaseException:  # noqa: BLE001 (whatever it is, the test says so)
        sender.send(traceback.format_exc()[-3000:])
    else:
        sender.send(_DONE)
