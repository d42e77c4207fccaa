# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tools/install_packages.sh against a made-up machine: its own apt directory and stand-ins for apt's commands."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[3] / "tools" / "install_packages.sh"
BUILD = {"gcc", "libc6-dev", "zlib1g-dev", "libzstd-dev"}
TEST = BUILD | {"git", "openssh-client", "openssh-server", "procps", "faketime", "strace", "clang-format", "clang-tidy"}

STAND_INS = {
    # Notes its arguments; an install of qemu-utils from backports brings the wanted version.
    "apt-get": """
        echo "$*" >> "$MACHINE/log"
        case "$*" in *bookworm-backports*) echo 10.0.2 > "$MACHINE/qemu";; esac
    """,
    "apt-cache": """
        if [ "$#" = 2 ]; then echo "  Candidate: $(cat "$MACHINE/candidate")"; else cat "$MACHINE/policy"; fi
    """,
    "dpkg-query": """for name; do :; done; grep -qx "$name" "$MACHINE/installed" && printf 'install ok installed'""",
    "qemu-img": """[ -s "$MACHINE/qemu" ] && echo "qemu-img version $(cat "$MACHINE/qemu") (Debian)" """,
    "id": "cat $MACHINE/id",
    "sudo": """echo "sudo $1" >> "$MACHINE/log"; exec "$@" """,
}


class Machine:
    """A Debian 12 machine in a directory; `run` installs on it and returns apt's calls."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.apt = top / "apt"
        (self.apt / "sources.list.d").mkdir(parents=True)
        for name, body in STAND_INS.items():
            path = top / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        self.write("os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
        self.write("id", "0\n")
        self.write("candidate", "1:7.2+dfsg-7\n")
        for name in ("log", "policy", "installed", "qemu"):
            self.write(name, "")

    def write(self, name: str, text: str) -> None:
        (self.top / name).write_text(text)

    def install(self, *packages: str) -> None:
        self.write("installed", "".join(f"{name}\n" for name in packages))

    def source(self, name: str, text: str) -> None:
        (self.apt / name).write_text(text)

    def derived(self, name: str) -> str:
        return (self.apt / "sources.list.d" / name).read_text()

    def run(self, kind: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.top / 'bin'}:{os.environ['PATH']}",
            "MACHINE": str(self.top),
            "AIRLOCK_APT_DIRECTORY": str(self.apt),
            "AIRLOCK_OS_RELEASE": str(self.top / "os-release"),
        }
        return subprocess.run(["bash", SCRIPT, kind], env=environment, check=check, capture_output=True, text=True)

    @property
    def log(self) -> list[str]:
        return (self.top / "log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(("kind", "wanted"), [("build", BUILD), ("test", TEST), ("venv", {"python3-venv"})])
def test_nothing_is_done_where_nothing_is_missing(machine: Machine, kind: str, wanted: set[str]) -> None:
    machine.install(*wanted)
    machine.write("qemu", "10.0.2")
    done = machine.run(kind)
    assert (done.stdout, done.stderr, machine.log) == ("", "", [])


@pytest.mark.parametrize("present", [set(), {"gcc"}, BUILD - {"libzstd-dev"}])
def test_only_what_is_missing_is_installed_after_one_update(machine: Machine, present: set[str]) -> None:
    machine.install(*present)
    done = machine.run("build")
    update, install = machine.log
    assert update.split()[-1] == "update"
    assert set(install.split()[install.split().index("--no-install-recommends") + 1 :]) == BUILD - present
    assert done.stdout == ""


@pytest.mark.parametrize("version", ["", "7.2.15", "10.1.0"])
def test_qemu_of_another_version_is_replaced_from_backports(machine: Machine, version: str) -> None:
    machine.install(*TEST)
    machine.write("qemu", version)
    machine.source("sources.list", "deb http://mirror.test/debian bookworm main\n")
    machine.run("test")
    assert machine.log[-1].endswith("--target-release bookworm-backports qemu-utils")
    assert machine.derived("airlock-backports.list") == "deb http://mirror.test/debian bookworm-backports main\n"
    assert not (machine.apt / "sources.list.d" / "airlock-backports.sources").exists()


def test_one_line_sources_keep_options_and_lose_other_suites(machine: Machine) -> None:
    machine.install(*TEST)
    machine.source(
        "sources.list.d/own.list",
        "# deb http://old.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.test/debian bookworm main contrib\n"
        "deb-src http://mirror.test/debian bookworm main\n"
        "deb http://mirror.test/debian bookworm-updates main\n"
        "deb http://mirror.test/debian-security bookworm-security main\n",
    )
    machine.run("demo")
    assert machine.derived("airlock-backports.list") == (
        "deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.test/debian bookworm-backports main contrib\n"
    )


def test_stanzas_keep_their_fields_and_lose_other_suites(machine: Machine) -> None:
    machine.install(*TEST)
    machine.source(
        "sources.list.d/debian.sources",
        "Types: deb deb-src\n# a remark\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /keys/a.gpg\n\n"
        "Types: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n\n"
        "Types: deb-src\nURIs: http://sources.test/debian\nSuites: bookworm\nComponents: main\n",
    )
    machine.run("demo")
    assert machine.derived("airlock-backports.sources").strip() == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm-backports\n"
        "Components: main\nSigned-By: /keys/a.gpg"
    )


def test_a_suite_that_is_enabled_already_gets_no_second_list(machine: Machine) -> None:
    machine.install(*TEST)
    machine.write(
        "policy", " 100 http://mirror.test/debian bookworm-backports/main\n release n=bookworm-backports,l=x\n"
    )
    machine.run("demo")
    assert list((machine.apt / "sources.list.d").iterdir()) == []
    assert machine.log[-1].endswith("qemu-utils")


def test_the_suite_itself_is_enough_where_it_has_the_version(machine: Machine) -> None:
    machine.install(*TEST)
    machine.write("candidate", "1:10.0.3+ds-1\n")
    done = machine.run("demo", check=False)
    assert machine.log[-1].endswith("--no-install-recommends qemu-utils")
    assert done.returncode == 1  # the stand-in does not install it, and the script looks
    assert "10.0.x is wanted" in done.stderr


def test_no_source_to_derive_from_is_an_error(machine: Machine) -> None:
    machine.install(*TEST)
    done = machine.run("demo", check=False)
    assert done.returncode == 1
    assert "no apt source of bookworm" in done.stderr


def test_others_than_root_go_through_sudo(machine: Machine) -> None:
    machine.write("id", "1000\n")
    machine.run("build")
    assert [line for line in machine.log if line.startswith("sudo")] == ["sudo env", "sudo env"]
