"""Python's garbage collector, kept from stopping everybody for what never becomes garbage."""

from __future__ import annotations

import asyncio
import gc


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Collect once, and leave what is left alone for ever; before the first request.

    A full collection walks every object that there is, with the GIL held: 50,000 once numpy, Falcon, the
    engine and a model are there. From now on it walks only what came later.
    """
    gc.collect()
    gc.freeze()
