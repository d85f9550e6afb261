"""Reads the chip's temperature and power, in a process of its own.

``python -m runtime.engines.hailo_readings`` gives one JSON line for each line of its input, until that
ends. HailoRT's control calls hold the GIL and may hang for seconds: in the process that answers HTTP,
each reading would stop inference meanwhile. Only ``Device`` is used, which any process
may open whoever runs networks on the chip.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from runtime.engines.hailo_device import describe_board, import_hailort


def read(package: Any) -> dict[str, Any]:
    """Ask the first device once.

    Returns:
        ``architecture``, ``firmware``, ``serial``; ``celsius`` of both sensors; ``watts``, None where
        the board has no sensor.
    """
    with package.Device() as device:
        board = device.control.identify()
        temperature = device.control.get_chip_temperature()
        try:
            watts: float | None = float(device.control.power_measurement())
        except Exception:
            # Boards without a sensor answer with an error, and not always the same one.
            watts = None
        architecture, firmware, serial = describe_board(board)
        return {
            "architecture": architecture,
            "firmware": firmware,
            "serial": serial,
            "celsius": [float(temperature.ts0_temperature), float(temperature.ts1_temperature)],
            "watts": watts,
        }


def main() -> int:
    """Answer each line of standard input."""
    for _ in sys.stdin:
        try:
            answer = read(import_hailort()[0])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
