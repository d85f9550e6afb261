"""Products of the chain: content-addressed folders, and which one each asset made last.

Layout, under one root::

    <asset>/<digest>/...files      never changed once there
    <asset>/<digest>.json          the ``Product`` that had this content last
    <asset>/latest.json            a ``Product``: what was made last, from what

A product names only what it was made from directly; what came before is found by walking from
digest to digest. So one artifact can never be judged or released with another one's sources, and a
link that was made again from new sources with the same content brings them along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import (
    DigestMismatchError,
    PipelineError,
    StoreError,
    free_space,
    store_errors,
)
from runtime.contract.files import move_aside, write_directory, write_document

LATEST = "latest.json"
CODE_VERSION = "3"
"""Raise it when a change to ``assets`` changes what a link makes from the same inputs."""


class ProductMissingError(PipelineError):
    """An asset that was never materialized, or whose files are gone."""

    code = "product_missing"


class ProductMixedError(PipelineError):
    """Products that were not made from one another."""

    code = "product_mixed"


@dataclass(frozen=True, kw_only=True)
class Product:
    """What one asset made.

    Args:
        asset: Asset key, parts joined by ``/``.
        digest: SHA-256 of the file where there is one, else of the sorted names and digests;
            the asset's data version.
        files: File name to SHA-256.
        size: Bytes of all files together.
        made_from: Asset key to digest of each product that this one was made from directly.
        facts: What a later link needs to know that is not in the files.
    """

    asset: str
    digest: str
    files: dict[str, str]
    size: int
    made_from: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


class Workbench:
    """Where the chain's products lie.

    Args:
        root: A folder; made when something is put into it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self,
        asset: str,
        files: Mapping[str, bytes],
        *,
        made_from: Iterable[Product] = (),
        facts: Mapping[str, str] | None = None,
    ) -> Product:
        """Keep files under their digest. Putting the same again changes nothing but what was damaged.

        The name of a product's only file is no part of its digest, so it must not vary.

        Raises:
            StoreError: The folder cannot be written.
        """
        digests = {name: sha256_bytes(data) for name, data in sorted(files.items())}
        product = Product(
            asset=asset,
            digest=_digest(digests),
            files=digests,
            size=sum(len(data) for data in files.values()),
            made_from={parent.asset: parent.digest for parent in made_from},
            facts=dict(facts or {}),
        )
        directory = self.directory(product)
        try:
            if directory.exists() and not self._is_whole(product):
                move_aside(directory)
            if not directory.exists():
                write_directory(directory, files)
            write_document(directory.with_name(f"{product.digest}.json"), to_json(product))
        except OSError as error:
            raise StoreError(
                f"{error.strerror}{free_space(error, directory)}",
                where=str(directory),
                hint=f"check the folder's rights and free space for {product.size / 2**20:.1f} MiB",
            ) from error
        return product

    def _is_whole(self, product: Product) -> bool:
        try:
            self.read_all(product)
        except PipelineError:
            return False
        return True

    def directory(self, product: Product) -> Path:
        """Folder of a product's files."""
        return self.root / product.asset / product.digest

    def read(self, product: Product, name: str | None = None) -> bytes:
        """Bytes of a product's file (its only one where no name is given), verified.

        Raises:
            ProductMissingError: The file is gone.
            DigestMismatchError: The file is not what the product says.
        """
        if name is None:
            (name,) = product.files
        if name not in product.files:
            raise ProductMissingError(
                f"has no {name}", where=product.asset, hint=f"materialize {product.asset} again"
            )
        path = self.directory(product) / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ProductMissingError(
                f"cannot be read: {error.strerror}", where=str(path), hint=f"materialize {product.asset}"
            ) from error
        if sha256_bytes(data) != product.files[name]:
            raise DigestMismatchError(
                "is not the file that was made",
                where=str(path),
                hint=f"materialize {product.asset}",
            )
        return data

    def remember(self, product: Product) -> None:
        """Make this the asset's latest product, by rename.

        Raises:
            StoreError: It cannot be written; the one before stays the latest.
        """
        path = self.root / product.asset / LATEST
        with store_errors(path):
            write_document(path, to_json(product))

    def latest(self, asset: str) -> Product:
        """What an asset made last.

        Raises:
            ProductMissingError: It made nothing yet.
        """
        return self._described(asset, LATEST, "was never made here")

    def ancestor(self, product: Product, asset: str) -> Product:
        """The product of an earlier link that this one was made from.

        Raises:
            ProductMissingError: It was not made from that asset, or its files are gone.
        """
        digest = self.ancestry(product).get(asset)
        if digest is None:
            raise ProductMissingError(
                f"does not say from which {asset} it was made",
                where=product.asset,
                hint=f"materialize {product.asset} again",
            )
        return self._described(asset, f"{digest}.json", f"no longer holds {digest[:12]}")

    def ancestry(self, product: Product) -> dict[str, str]:
        """Asset key to digest of everything that a product was made from.

        Raises:
            ProductMissingError: The description of one of them is gone.
            ProductMixedError: It was made from two versions of one asset.
        """
        found: dict[str, str] = {}
        waiting = [product]
        while waiting:
            current = waiting.pop()
            for asset, digest in current.made_from.items():
                if found.setdefault(asset, digest) != digest:
                    raise ProductMixedError(
                        f"was made from {asset} {digest[:12]} and {found[asset][:12]}",
                        where=product.asset,
                        hint=f"materialize what follows {asset} again",
                    )
                waiting.append(self._described(asset, f"{digest}.json", f"no longer holds {digest[:12]}"))
        return dict(sorted(found.items()))

    def check_latest(self, product: Product, *assets: str) -> None:
        """Refuse a product that was made from others than those that these assets made last.

        Dagster records the latest of them as what a link was made from, so it must be so.

        Raises:
            ProductMixedError: An asset was made again since; names it and what to materialize.
        """
        ancestry = self.ancestry(product)
        for asset in assets:
            latest, mine = self.latest(asset).digest, ancestry.get(asset, "nothing")
            if mine != latest:
                raise ProductMixedError(
                    f"was made from {asset} {mine[:12]}, {latest[:12]} was made since",
                    where=product.asset,
                    hint=f"materialize what follows {asset} again",
                )

    def read_all(self, product: Product) -> dict[str, bytes]:
        """Bytes of all of a product's files, verified."""
        return {name: self.read(product, name) for name in product.files}

    def _described(self, asset: str, name: str, missing: str) -> Product:
        path = self.root / asset / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise ProductMissingError(
                missing, where=asset, hint=f"observe or materialize {asset} first"
            ) from error
        return from_json(Product, data, str(path))


def _digest(digests: Mapping[str, str]) -> str:
    if len(digests) == 1:
        return next(iter(digests.values()))
    return sha256_bytes(to_json(dict(digests)))
