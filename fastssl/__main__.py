"""`python -m fastssl` is the same command as `fastssl`."""

import sys

from fastssl.cli import main

if __name__ == "__main__":
    sys.exit(main())
