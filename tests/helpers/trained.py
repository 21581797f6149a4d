"""The trained classifier of the tests. Its weights lie beside this file: python -m helpers.trained trains and writes them.

They are stored since the same training makes another network on each kind of processor, on which a test that compares two
attacks may come out the other way.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from mi_ray.classifiers import build_classifier
from mi_ray.data import Digits, to_unit

WEIGHTS = Path(__file__).with_suffix(".safetensors")
EPOCHS, BATCH, RATE = 12, 32, 0.05
DESCRIPTION: dict[str, Any] = {
    "architecture": "cnn_small",
    "arguments": {"width": 8},
    "classes": 10,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.3, 0.2],
}


def trained() -> Any:
    """A small network with the stored weights, right on 98 % of the test images of digits; in evaluation mode."""
    made = build_classifier(DESCRIPTION)
    made.load_state_dict(load_file(WEIGHTS))
    return made.eval().requires_grad_(False)


def train() -> Any:
    """Train it on digits, in float64, with a rate that falls to zero."""
    torch.manual_seed(0)
    made, digits = build_classifier(DESCRIPTION).double().train(), Digits().load()
    x, y = to_unit(digits.train_images).double(), torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.SGD(made.parameters(), lr=RATE, momentum=0.9)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - epoch / EPOCHS)
        for part in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(made(x[part]), y[part]).backward()
            optimizer.step()
    return made.float()


if __name__ == "__main__":
    save_file(train().state_dict(), WEIGHTS)
