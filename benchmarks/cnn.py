"""What a training step of the CNN waits for and is spent on.

    python benchmarks/cnn.py

By the network, augmentation and order of pictures of configs/cnn.yaml. Writes
results/benchmarks/cnn.json.
"""

import json

from picture_steps import measure_steps
from side_by_side import write

from groundup.models.cnn import CNNConfig
from groundup.train import cnn


def main() -> None:
    """Measures all and writes the figures."""
    content = measure_steps(cnn, "cnn", CNNConfig)
    print(json.dumps(content, indent=1))
    write("cnn", content)


if __name__ == "__main__":
    main()
