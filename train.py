"""A clone's face of `flaxcnn train`: `python train.py mnist_cnn --workdir runs/mnist`."""

import sys

from flaxcnn.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
