"""`ray start` for a cluster that only this machine reaches: `python -m infra.stack.loopback_ray start --head ...`.

Ray 2.60 replaces 127.0.0.1 by the address of the network and then listens on all networks, unless a setting that is meant
for other systems says that there is none: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, in the env file, because clients need it, too.
With it a second node is refused. Nothing but that refusal is lifted here: both nodes are on this machine.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run Ray's command with the arguments of this one."""
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main as ray_command

    from infra.stack.environment import LOOPBACK

    services.get_node_ip_address = lambda address=None: LOOPBACK
    ray_constants.ENABLE_RAY_CLUSTER = True
    sys.argv[0] = "ray"
    ray_command()


if __name__ == "__main__":
    main()
