"""What `import functorch_hops` costs, next to torch's own import: `python benchmarks/import_time.py`."""

import statistics
import subprocess
import sys

PROGRAM = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import functorch_hops
print(middle - start, time.process_time() - middle)
"""
RUNS = 7


def main() -> None:
    runs = [subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True) for _ in range(RUNS)]
    torch_times, own_times = zip(*(map(float, run.stdout.split()) for run in runs[1:]))  # the first one warms the disk
    of_torch, own = statistics.median(torch_times), statistics.median(own_times)
    print(f"torch {of_torch:.2f} s of CPU, functorch_hops {own:.2f} s after it: a ratio of {own / of_torch:.2f}")


if __name__ == "__main__":
    main()
