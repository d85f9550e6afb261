"""uvicorn's worker with each of its optional parts named, so that chance decides nothing."""

from __future__ import annotations

from typing import Any

from uvicorn_worker import UvicornWorker


class HttptoolsUvloop(UvicornWorker):  # type: ignore[misc]
    """uvicorn with both of its optional native parts."""

    CONFIG_KWARGS: dict[str, Any] = {"loop": "uvloop", "http": "httptools"}  # noqa: RUF012


class HttptoolsAsyncio(UvicornWorker):  # type: ignore[misc]
    """uvicorn with its optional native parser on the standard event loop."""

    CONFIG_KWARGS: dict[str, Any] = {"loop": "asyncio", "http": "httptools"}  # noqa: RUF012


class H11Asyncio(UvicornWorker):  # type: ignore[misc]
    """uvicorn as it comes without optional parts."""

    CONFIG_KWARGS: dict[str, Any] = {"loop": "asyncio", "http": "h11"}  # noqa: RUF012
