"""Run the official AutoAttack on a recording's network: its seconds, and which images stand.

    python tests/reference/official_seconds.py RECORDING.npz FILE.json                for benchmark.py attack --official
    python tests/reference/official_seconds.py RECORDING.npz FILE.json L2 0.8         in another ball
    python tests/reference/official_seconds.py RECORDING.npz FILE.json L1 4 100       of the first 100 images

Needs an environment of its own with PyTorch and the package `autoattack` (fra31/auto-attack), and nothing of this
project. One thread, batches of 250, each attack alone on all images. The file takes of every attack its seconds, how
many images stand after it, and which: a 1 for each that is right without the attack and under it. An attack that is in
the file already is not run again. Files of other balls in `golden/` are what `check.py` compares with.
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


def main(recording: str, file: str, norm: str = "Linf", epsilon: str = "", limit: str = "") -> None:
    """Run what the file does not hold yet; without an epsilon the recording's, without a limit all images."""
    torch.set_num_threads(1)
    with np.load(recording) as archive:
        arrays = dict(archive)
    network, radius = load(arrays), float(epsilon or arrays["epsilon"])
    number = int(limit or len(arrays["images"]))
    images = torch.tensor(arrays["images"][:number]).permute(0, 3, 1, 2).float().contiguous() / 255
    labels = torch.tensor(arrays["labels"][:number]).long()
    logits = network(images)
    deviation = float((logits - torch.tensor(arrays["clean_logits"][:number])).abs().max() / logits.abs().max())
    if deviation > 1e-3:
        sys.exit(f"the rebuilt network differs from the recorded one by {deviation:.1g} of the largest logit")
    about = {"recording": Path(recording).name, "norm": norm.lower(), "epsilon": radius}
    found = json.loads(Path(file).read_text()) if Path(file).exists() else {**about, "seconds": {}, "standing": {}}
    if any(found.get(key, value) != value for key, value in about.items()):
        sys.exit(f"{file} is of another recording, norm or epsilon: give another file")
    for name, official in ATTACKS.items():
        if name in found["seconds"]:
            continue
        attack = AutoAttack(network, norm=norm, eps=radius, device="cpu", verbose=False, seed=0)
        attack.attacks_to_run = [official]
        started = time.perf_counter()
        crafted = attack.run_standard_evaluation(images, labels, bs=250)
        found["seconds"][name] = time.perf_counter() - started
        right = (network(images).argmax(1) == labels) & (network(crafted).argmax(1) == labels)
        found["standing"][name] = int(right.sum())
        found.setdefault("stand", {})[name] = "".join(str(int(each)) for each in right)
        print(f"{name}: {found['standing'][name]} stand, {found['seconds'][name]:.1f} s", flush=True)
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
