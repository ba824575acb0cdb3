"""``python benchmarks/speed``: the command line of :mod:`speed.benchmark`."""

import sys
from pathlib import Path

# Python has put this folder in front of its path, and the package is found from the folder above.
sys.path.insert(0, str(Path(__file__).parents[1]))

from speed.benchmark import main

if __name__ == "__main__":
    main()
