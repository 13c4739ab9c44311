"""Asks a server for `/health` again and again, each time on a new connection, until its input is closed.

`python -m tests.soak.health HOST:PORT`. A process of its own, with few imports: in a thread beside attackers it would
wait for the interpreter lock, and measure that. Prints one line of JSON at the end.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time

PAUSE_S = 0.2
LIMIT_S = 1.0


def status_of(address: str) -> str:
    """The status of a reply, or the error."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/health")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def main(address: str) -> None:
    """Probe until the input is closed."""
    took, problems = [], []
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        began = time.monotonic()
        if (status := status_of(address)) != "200":
            problems.append(f"/health got {status}")
        took.append(round(time.monotonic() - began, 3))
    slow = [seconds for seconds in took if seconds > LIMIT_S]
    print(json.dumps({"probes": len(took), "slowest, s": max(took, default=0), "slow, s": slow, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1])
