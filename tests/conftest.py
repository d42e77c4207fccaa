# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same for all tests, however they were started: the commands beside this Python are found, the locale is one that
Ansible can do with, and no signal is ignored. And what all tests are found with stays: it is not looked through for
garbage again."""

from __future__ import annotations

import gc
import os
import signal
import sys

from hypothesis import HealthCheck, settings

os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
os.environ["LC_ALL"] = "C.UTF-8"
# A shell's background jobs ignore SIGINT, and what nohup starts SIGHUP: what is tested would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# How long anything takes tells of the machine, and not of what is tested. Fixtures are made anew by who needs it.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("any machine")


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Garbage of tests goes sooner then, too: a worker that grows makes every fork, one for each guest, slow."""
    gc.collect()
    gc.freeze()
    gc.enable()
