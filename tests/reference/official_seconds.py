"""Time the official AutoAttack on a recording, for `benchmark.py attack --official FILE`.

    python tests/reference/official_seconds.py RECORDING.npz FILE.json

Needs an environment of its own with PyTorch and the package `autoattack` (fra31/auto-attack), and nothing of this
project. One thread, batches of 250, each attack alone on all images; the file takes its seconds and how many images
stand after it. An attack that is in the file already is not run again.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from autoattack import AutoAttack

ATTACKS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}


def load(arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    """Rebuild the network of a recording, see `cifs_tf.benchmarks.attack.Recording.load`."""
    layers: list[torch.nn.Module] = []
    for name in sorted(name.removesuffix("_kernel") for name in arrays if name.startswith("conv") and "kernel" in name):
        kernel = torch.tensor(arrays[f"{name}_kernel"]).permute(3, 2, 0, 1)
        layers += [torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride=2, padding=1), torch.nn.ReLU()]
        layers[-2].weight.data, layers[-2].bias.data = kernel.contiguous(), torch.tensor(arrays[f"{name}_bias"])
    # The dense layer's rows are in the order of channels last.
    dense = torch.tensor(arrays["dense_kernel"])
    channels = layers[-2].out_channels
    side = round((dense.shape[0] / channels) ** 0.5)
    rows = dense.reshape(side, side, channels, -1).permute(2, 0, 1, 3).reshape(dense.shape)
    last = torch.nn.Linear(*dense.shape)
    last.weight.data, last.bias.data = rows.T.contiguous(), torch.tensor(arrays["dense_bias"])
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), last).eval().requires_grad_(False)


def main(recording: str, file: str) -> None:
    """Run what the file does not hold yet."""
    torch.set_num_threads(1)
    with np.load(recording) as archive:
        arrays = dict(archive)
    network = load(arrays)
    images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2).float().contiguous() / 255
    labels = torch.tensor(arrays["labels"]).long()
    logits = network(images)
    deviation = float((logits - torch.tensor(arrays["clean_logits"])).abs().max() / logits.abs().max())
    if deviation > 1e-3:
        sys.exit(f"the rebuilt network differs from the recorded one by {deviation:.1g} of the largest logit")
    found = json.loads(Path(file).read_text()) if Path(file).exists() else {"seconds": {}, "standing": {}}
    for name, official in ATTACKS.items():
        if name in found["seconds"]:
            continue
        attack = AutoAttack(network, norm="Linf", eps=float(arrays["epsilon"]), device="cpu", verbose=False, seed=0)
        attack.attacks_to_run = [official]
        started = time.perf_counter()
        crafted = attack.run_standard_evaluation(images, labels, bs=250)
        found["seconds"][name] = time.perf_counter() - started
        right = (network(images).argmax(1) == labels) & (network(crafted).argmax(1) == labels)
        found["standing"][name] = int(right.sum())
        print(f"{name}: {found['standing'][name]} stand, {found['seconds'][name]:.1f} s", flush=True)
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
