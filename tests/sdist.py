"""A source distribution holds its own tests: `python tests/sdist.py dist/functorch_hops-*.tar.gz` collects them all."""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def main(archive: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (root,) = Path(folder).iterdir()
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-p", "no:cacheprovider"]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True)
        print("\n".join(result.stdout.splitlines()[-3:]))
        return result.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
