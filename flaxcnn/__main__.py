"""`python -m flaxcnn`: the command `flaxcnn` where its folder is not on the PATH."""

import sys

from flaxcnn.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
