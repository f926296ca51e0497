"""`python -m bnn_exp` is `bnn-train`."""

import sys

from bnn_exp.cli import main

if __name__ == "__main__":
    sys.exit(main())
