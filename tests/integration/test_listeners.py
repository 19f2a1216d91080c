"""Nothing of a run on this machine listens where another machine could reach it."""

import ipaddress
import json

import psutil
import pytest
from conftest import MARK

pytestmark = pytest.mark.long


def listeners(place):
    """Return the sockets at which processes of the place listen now, each as the name of the process and its address."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == place.env[MARK]:
                for socket in process.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.add((process.name(), socket.laddr.ip))
        except psutil.Error:  # it has ended
            continue
    return found


def is_loopback(address):
    """Return whether only this machine reaches an address, also one of IPv4 that is written as one of IPv6."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_a_run_with_all_its_engines_listens_on_the_loopback_interface_alone(make_place):
    """Ray, the workers of a stage with what they exchange gradients by, and the embedded server of Prefect."""
    place = make_place(ray={"workers": 2})
    process = place.start("run", str(place.config), "--json")
    found = set()
    try:
        while process.poll() is None:
            found |= listeners(place)
    finally:
        process.kill()
    assert process.returncode == 0, place.errors()
    assert json.loads((place.folder / "stdout").read_text())["run_id"]
    names = {name for name, _ in found}
    assert {"gcs_server", "raylet"} <= names, names
    assert len(names) > 3, names
    assert {(name, address) for name, address in found if not is_loopback(address)} == set()
