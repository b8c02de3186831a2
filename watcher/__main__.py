"""`python -m watcher` is `steady watch`."""

import sys

from watcher.cli import main

if __name__ == "__main__":
    main(["watch", *sys.argv[1:]])
