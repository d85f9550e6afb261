"""Train the sample TCN-VAE on synthetic motions and write its version folder.

    python -m sample.train [--epochs N] [--per-motif N] [--out DIR]

The loss is reconstruction + a small KL term + classification of the mean. Everything is seeded;
another machine or torch build may still differ in the last bits. The seeds of the windows are in
``sample.motions.SEEDS``. Nothing that is written names a time, a host or a path.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sample import motions
from sample.motions import CHANNEL_ORDER, MOTIFS, Floats, Labels, Windows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from assets.tcn_vae import TcnVae

VERSION = "v0.1.0"
DEFAULT_OUT = Path("artifacts/weights/tcn_encoder") / VERSION
HELD_OUT_PER_MOTIF = 200

SEED = 7
THREADS = 2
BATCH = 64
PEAK_RATE = 2e-3
KL_WEIGHT = 4e-4  # small enough that all 64 dimensions keep carrying signal
MOTIF_WEIGHT = 0.2
SMOOTHING = 0.05
ACTIVE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training run can choose."""

    epochs: int
    per_motif: int


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation per channel, float64 (9,), in the channels' units."""

    mean: Floats
    std: Floats

    @classmethod
    def measure(cls, windows: Windows) -> Statistics:
        """Measure (N, 100, 9) windows; six decimals, so that the JSON holds the exact values."""
        values = windows.astype(np.float64)
        return cls(mean=values.mean((0, 1)).round(6), std=values.std((0, 1)).round(6))

    def normalize(self, windows: Windows) -> Windows:
        """Scale raw windows to z-scores, float32 (N, 100, 9)."""
        scaled = (windows - self.mean.astype(np.float32)) / self.std.astype(np.float32)
        return np.asarray(scaled, dtype=np.float32)


def train(windows: Windows, labels: Labels, plan: Plan) -> TcnVae:
    """Train on normalized windows, float32 (N, 100, 9), and return the model in evaluation mode."""
    import torch

    from assets.tcn_vae import TcnVae

    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    # No dropout: a generator of windows leaves nothing to memorize, and it costs a third of the time.
    model = TcnVae(len(MOTIFS), dropout=0.0)
    data, targets = torch.from_numpy(windows), torch.from_numpy(_indices(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, epochs=plan.epochs, steps_per_epoch=len(data) // BATCH
    )
    for epoch in range(plan.epochs):
        order = torch.randperm(len(data))[: len(data) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            loss = _loss(model, data[batch], targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{plan.epochs}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def _loss(model: TcnVae, windows: Tensor, targets: Tensor) -> Tensor:
    import torch
    from torch.nn import functional

    assert model.activity_classifier is not None
    mean, log_variance = model.distribution(windows)
    latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    reconstruction = functional.mse_loss(model.decoder(latent), windows)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    # Smoothing keeps the logits small: certainty beyond it would only cost quantization range.
    motif = functional.cross_entropy(model.activity_classifier(mean), targets, label_smoothing=SMOOTHING)
    return reconstruction + KL_WEIGHT * divergence + MOTIF_WEIGHT * motif


def _indices(labels: Labels) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([MOTIFS.index(label) for label in labels], dtype=np.int64)


def evaluate(model: TcnVae, windows: Windows, labels: Labels) -> dict[str, Any]:
    """Measure the model on normalized windows it has not seen."""
    import torch

    assert model.activity_classifier is not None
    truth = _indices(labels)
    data = torch.from_numpy(windows)
    with torch.inference_mode():
        latent = torch.cat([model(part) for part in torch.split(data, BATCH)])
        logits = model.activity_classifier(latent).numpy()
        decoded = torch.cat([model.decoder(part) for part in torch.split(latent, BATCH)])
        error = (decoded - data).square().mean().item()
    right = logits.argmax(1) == truth
    spread = latent.numpy().std(0)
    active = spread >= ACTIVE_SHARE * spread.max()
    return {
        "top1": round(float(right.mean()), 4),
        "top1_per_motif": {name: round(float(right[truth == i].mean()), 4) for i, name in enumerate(MOTIFS)},
        "logit_abs_max": round(float(np.abs(logits).max()), 2),
        "reconstruction_mse": round(error, 4),
        "latent": {
            "dimensions": len(spread),
            "active_dimensions": int(active.sum()),
            "active_means": f"standard deviation of at least {ACTIVE_SHARE:g} of the largest",
            "std_of_active": {
                "min": round(float(spread[active].min()), 3),
                "median": round(float(np.median(spread[active])), 3),
                "max": round(float(spread.max()), 3),
            },
        },
    }


def normalization_json(statistics: Statistics, windows: Windows) -> dict[str, Any]:
    """Describe the input: channels, units, statistics and what they were measured on."""
    return {
        "version": VERSION,
        "channel_order": list(CHANNEL_ORDER),
        "channel_mapping": {"accelerometer": [0, 1, 2], "gyroscope": [3, 4, 5], "magnetometer": [6, 7, 8]},
        "normalization": {
            "method": "z_score",
            "per_channel": True,
            "zscore_mean": statistics.mean.tolist(),
            "zscore_std": statistics.std.tolist(),
        },
        # The published schema writes the Greek letter mu, not the micro sign.
        "units": {"accelerometer": "m/s²", "gyroscope": "rad/s", "magnetometer": "\u03bcT"},
        "sampling_rate_hz": motions.RATE_HZ,
        "window_size": motions.STEPS,
        "computed_from": {
            "origin": "synthetic",
            "provenance": "measured",
            "set": "training",
            "generator": "sample/motions.py",
            "seed": motions.SEEDS["training"],
            "windows": len(windows),
            "windows_sha256": motions.digest(windows),
        },
    }


def model_config_json(statistics: Statistics) -> dict[str, Any]:
    """Describe the model's input, output and motif head."""
    return {
        "origin": "synthetic",
        "model_specs": {
            "input_shape": [1, motions.STEPS, len(CHANNEL_ORDER)],
            "output_shape": [1, 64],
            "input_format": "normalized_imu_window",
            "output_format": "latent_embeddings",
            "sequence_length": motions.STEPS,
            "latent_dimension": 64,
        },
        "normalization": {
            "method": "z_score_per_channel",
            "mean": statistics.mean.tolist(),
            "std": statistics.std.tolist(),
            "channel_order": list(CHANNEL_ORDER),
        },
        "motifs": {"names": list(MOTIFS)},
        "files": {"pytorch_checkpoint": "tcn_vae.pth"},
    }


def eval_metrics_json(measured: dict[str, Any], windows: Windows) -> dict[str, Any]:
    """Say what was measured, on what."""
    return {
        "schema": 1,
        "origin": "synthetic",
        "provenance": "measured",
        "set": "held_out",
        "generator": "sample/motions.py",
        "seed": motions.SEEDS["held_out"],
        "windows": len(windows),
        "windows_sha256": motions.digest(windows),
        **measured,
    }


_MODEL_CARD = """\
# Sample TCN-VAE encoder {version}

**Trained on synthetic data only. Not for real use.** It has never seen a sensor: what it says about
a real person's movement means nothing. It exists so that the pipeline can be run from weights to a
served release on a fresh checkout.

## What it is
A temporal convolutional variational autoencoder. The encoder maps one window of a 9-axis inertial
sensor, (100, 9) at 100 Hz, channels {channels} in m/s², rad/s and µT, z-scored per channel with
`normalization.json`, to a latent of 64 numbers. A linear head maps the latent to {count} motifs:
{motifs}.

## How it was trained
`python -m sample.train --epochs {epochs} --per-motif {per_motif}`: {windows} windows from
`sample/motions.py` (seed {train_seed}); mean squared reconstruction error + {kl:g} x KL divergence
+ {motif:g} x cross-entropy of the motif head on the latent mean, label smoothing {smoothing:g}; AdamW,
one-cycle schedule up to {rate:g}, batches of {batch}, torch seed {seed}.

## Measured
On {held_out} synthetic windows from another seed ({held_out_seed}); details in `eval_metrics.json`.

| figure | value |
|---|---|
| top-1 of the motif head | {top1:.2%} |
| lowest top-1 of a motif | {worst:.2%} ({worst_motif}) |
| active latent dimensions | {active} of 64 |
| reconstruction error, z-scores squared | {mse:.3f} |

Windows of the same generator are easy: expect far less on captured ones.

## Licence
MIT, as the project.
"""


def model_card(plan: Plan, windows: int, metrics: dict[str, Any]) -> str:
    """Fill in the model card from the plan and the measured figures."""
    per_motif: dict[str, float] = metrics["top1_per_motif"]
    worst = min(per_motif, key=lambda name: per_motif[name])
    return _MODEL_CARD.format(
        version=VERSION,
        channels=" ".join(CHANNEL_ORDER),
        count=len(MOTIFS),
        motifs=", ".join(MOTIFS),
        epochs=plan.epochs,
        per_motif=plan.per_motif,
        windows=windows,
        train_seed=motions.SEEDS["training"],
        kl=KL_WEIGHT,
        motif=MOTIF_WEIGHT,
        smoothing=SMOOTHING,
        rate=PEAK_RATE,
        batch=BATCH,
        seed=SEED,
        held_out=metrics["windows"],
        held_out_seed=metrics["seed"],
        top1=metrics["top1"],
        worst=per_motif[worst],
        worst_motif=worst,
        active=metrics["latent"]["active_dimensions"],
        mse=metrics["reconstruction_mse"],
    )


def save_checkpoint(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save a plain state dict; tensors with two names are stored once."""
    import torch

    torch.save(dict(state), path)


def write_checksums(folder: Path) -> None:
    """Write ``sha256sum.txt`` over every other file in the folder, as ``sha256sum`` would."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "sha256sum.txt")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "sha256sum.txt").write_text("".join(lines))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Train, measure and write the version folder; return the measured figures."""
    windows, labels = motions.draw_set(plan.per_motif, motions.SEEDS["training"])
    held_out, held_out_labels = motions.draw_set(HELD_OUT_PER_MOTIF, motions.SEEDS["held_out"])
    statistics = Statistics.measure(windows)
    model = train(statistics.normalize(windows), labels, plan)
    measured = evaluate(model, statistics.normalize(held_out), held_out_labels)
    metrics = eval_metrics_json(measured, held_out)
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model.state_dict(), out / "tcn_vae.pth")
    _write_json(out / "normalization.json", normalization_json(statistics, windows))
    _write_json(out / "model_config.json", model_config_json(statistics))
    _write_json(out / "eval_metrics.json", metrics)
    (out / "model_card.md").write_text(model_card(plan, len(windows), metrics), encoding="utf-8")
    write_checksums(out)
    return metrics


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sample.train", description="Train the sample TCN-VAE on synthetic motions."
    )
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--per-motif", type=int, default=500, help="training windows per motif")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    chosen = parser.parse_args()
    metrics = run(Plan(epochs=chosen.epochs, per_motif=chosen.per_motif), chosen.out)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
