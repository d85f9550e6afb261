"""A release that holds the ``onnx_model`` itself, marked ``full_precision``: only to be measured.

It is put together around the gate, which refuses it wherever it is published, promoted, imported or loaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from runtime.contract.document import sha256_bytes
from runtime.contract.release import FULL_PRECISION_KIND, MANIFEST_NAME, Artifact, manifest_bytes, release_id
from runtime.contract.release_directory import Release, open_release

NAME: Final = "encoder.full_precision.onnx"


def make_release(folder: Path, like: Release, onnx: Path) -> Release:
    """Write a release like another one, its artifact replaced.

    Args:
        folder: A private store.
        like: Whose statistics, head and golden windows it has.
        onnx: The canonical graph that its artifact was quantized from.

    Returns:
        The release, unsigned.
    """
    data, manifest = onnx.read_bytes(), like.manifest
    others = [each for each in manifest.artifacts if each.name != manifest.artifact]
    artifact = Artifact(name=NAME, kind=FULL_PRECISION_KIND, sha256=sha256_bytes(data), size=len(data))
    changed = dataclasses.replace(manifest, artifact=NAME, artifacts=(artifact, *others))
    document = manifest_bytes(changed)
    directory = folder / "releases" / release_id(document)
    directory.mkdir(parents=True)
    (directory / MANIFEST_NAME).write_bytes(document)
    (directory / NAME).write_bytes(data)
    for each in others:
        (directory / each.name).write_bytes(like.read(each.name))
    return open_release(directory)
