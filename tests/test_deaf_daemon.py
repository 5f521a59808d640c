"""The whole daemon with a network thread that dies under it: never alive and deaf."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support_daemon import Daemon
from support_mqtt import publish, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from support_mqtt import Mosquitto

#: Run by Python at its start: the payload `die SystemExit` then does that to the network thread.
_INJECTION = """
import builtins, importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "gruard.daemon.edges.connection":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        whole_load = spec.loader.exec_module

        def load(module):
            whole_load(module)
            whole = module.Connection._on_message

            def on_message(connection, client, userdata, arrived):
                word, _, fault = bytes(arrived.payload).decode().partition(" ")
                if word == "die":
                    raise getattr(builtins, fault)
                whole(connection, client, userdata, arrived)

            module.Connection._on_message = on_message

        spec.loader.exec_module = load
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.alone
def test_daemon_hears_again_within_5_s_of_the_death_of_its_network_thread(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """F18: ten deaths, ten replacements, and every reading after each of them counts."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_INJECTION)
    daemon = Daemon(tmp_path, mosquitto.port)
    try:
        daemon.start(environ={"PYTHONPATH": str(site)})
        for number in range(10):
            fault = ("SystemExit", "KeyboardInterrupt", "GeneratorExit")[number % 3]
            publish(mosquitto.port, "plant/pump", f"die {fault}", qos=0)  # else it would come again
            died_s = time.monotonic()
            assert wait_until(lambda deaths=number + 1: daemon.log().count("it is replaced") == deaths)
            publish(mosquitto.port, "plant/pump", f'{{"flow": 1.5, "ts": {time.time():.3f}}}')
            assert daemon.settled(number + 1), daemon.log()
            assert time.monotonic() - died_s < 5.0
        assert daemon.stop() == 0
    finally:
        daemon.__exit__()
