# SPDX-License-Identifier: Apache-2.0
"""A robot in this network namespace, a policy in another one, and the link between them cut and mended.

ip netns exec ROBOT python test/faults/cut_link.py POLICY LINK FOLDER     prints what came of it as JSON
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from faults.node_world import SAFE, World

# One host's processes would share memory, which no cut of a link cuts.
ENVIRONMENT = {
    "ROS_DOMAIN_ID": "7",
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET",
    "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4",
}
NETWORK = 0x40000000  # CLONE_NEWNET
CUT_PERIODS = 40


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread starts meanwhile starts in there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
        for file in (there, here):
            if libc.setns(file.fileno(), NETWORK):
                raise OSError(ctypes.get_errno(), f"cannot enter {file.name}")
            if file is there:
                try:
                    yield
                finally:
                    libc.setns(here.fileno(), NETWORK)


def main() -> None:
    namespace, link, folder = sys.argv[1:]
    os.environ |= ENVIRONMENT
    world = World(Path(folder), ENVIRONMENT)
    try:
        with inside(namespace):
            world.start_policy()
        world.wait_for_policy()
        world.prepare({})
        command, before = world.commands[-1][1], world.counts()
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        world.run(2)  # what was under way
        cut_s = time.monotonic()
        world.run(CUT_PERIODS, world.tick)
        during = [values for at_s, values in world.commands if at_s > cut_s]
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
        up_s = time.monotonic()
        world.until(lambda: any(at_s > up_s for at_s, _ in world.commands), world.tick)
        first = next(values for at_s, values in world.commands if at_s > up_s)
        world.until(lambda: world.answers() and world.commands[-1][1] == command, world.tick)
        told = {"during": len(during), "first_is_safe_or_answer": first in (SAFE, command)}
        told |= {"back_s": time.monotonic() - up_s, "rose": dict(world.counts() - before), "safe": command == SAFE}
        print(json.dumps(told))
    finally:
        world.close()


if __name__ == "__main__":
    main()
