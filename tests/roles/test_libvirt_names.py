# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt says of disks whose names tenants chose: none of them is taken for another one.

The virsh here answers what that of libvirt 9.0 with its test driver does, byte for byte.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest

from tests.support import qemu

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = pathlib.Path(sys.executable).parent
VIRSH = """#!/usr/bin/python3
import json, os, sys
answers = json.load(open(os.path.join(os.path.dirname(__file__), "answers.json")))
sys.stdout.reconfigure(encoding="utf-8")
known = answers.get(" ".join(sys.argv[4:])) if sys.argv[1:4] == ["--readonly", "--connect", "qemu:///system"] else None
if known is None or os.environ["LC_ALL"] != "C.UTF-8":
    sys.exit("error: failed to get domain '%s'" % sys.argv[-1])
print(known)
"""
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    pre_upgrade_snapshot_free_space: "0"
    pre_upgrade_snapshot_manifest_directory: "{{ home }}/manifests"
  tasks:
    - name: Ask for the disks of one machine after the other
      ansible.builtin.include_tasks: one.yml
      loop: "{{ domains }}"
      loop_control:
        loop_var: domain
        label: "{{ domain | airlock.images.printable }}"
    - name: Keep what is said
      ansible.builtin.copy:
        dest: "{{ home }}/said.json"
        content: "{{ said | to_json }}"
        mode: "0600"
"""
ONE = """
- block:
    - ansible.builtin.include_role:
        name: airlock.images.pre_upgrade_snapshot
        tasks_from: check
      vars:
        pre_upgrade_snapshot_vms: [{name: vm, libvirt_domain: "{{ domain }}"}]
    - ansible.builtin.set_fact:
        said: "{{ (said | default([])) + [pre_upgrade_snapshot_result.disks] }}"
  rescue:
    - ansible.builtin.set_fact:
        said: "{{ (said | default([])) + [ansible_failed_result.msg] }}"
"""


class Host:
    """A host with a virsh. home: a directory of its own; answers: by the arguments behind the connection."""

    def __init__(self, home: pathlib.Path) -> None:
        self.home = home
        self.answers = {"list --all --uuid --name": ""}
        command = home / "bin/virsh"
        command.parent.mkdir()
        command.write_text(VIRSH)
        command.chmod(0o755)

    def has(self, domain: str, sources: t.Sequence[str], uuid: str = "") -> None:
        """virsh tells these disks of a domain, by its UUID, or by its name where that is no UUID of another's."""
        uuid = uuid or f"0a0a0a0a-0000-0000-0000-{len(self.answers):012}"
        self.answers["list --all --uuid --name"] += f"{uuid} {domain}\n"
        rows = [f" file   disk     vd{chr(97 + number)}      {source}\n" for number, source in enumerate(sources)]
        head = f" Type   Device   Target   Source\n{'-' * 80}\n"
        for name in (uuid, domain):
            self.answers.setdefault(f"domblklist --details --domain {name}", head + "".join(rows))

    def disks(self, *domains: str) -> list[t.Any]:
        """The disks that the role finds of each, or why it finds none."""
        (self.home / "bin/answers.json").write_text(json.dumps(self.answers))
        (self.home / "play.yml").write_text(PLAY)
        (self.home / "one.yml").write_text(ONE)
        both = {"home": str(self.home), "domains": domains, "ansible_python_interpreter": sys.executable}
        (self.home / "variables.json").write_text(json.dumps(both))
        command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", "@variables.json", "play.yml"]
        done = subprocess.run(
            [str(COMMANDS / command[0]), *command[1:]],
            cwd=self.home,
            env={
                **os.environ,
                "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/tree"),
                "ANSIBLE_HOME": str(self.home / "ansible"),
                "ANSIBLE_NOCOLOR": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert not re.search("\n(ok|changed): \\[forged|[\x1b\x9b\u202e]", done.stdout), done.stdout
        said = json.loads((self.home / "said.json").read_text())
        assert len(said) == len(domains)
        return t.cast("list[t.Any]", said)


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Host:
    return Host(tmp_path)


def test_a_disk_is_not_taken_for_another_one(host: Host) -> None:
    """A blank at the end, or in front, is the name's, and what virsh can only describe is no name."""
    top = host.home / "images"
    top.mkdir()
    for name in ("web.qcow2", "web.qcow2 ", "bär.qcow2", r"new\x0aline.qcow2"):
        qemu.create(str(top / name), "1M")
    host.has("blank", [f"{top}/web.qcow2 ", f"{top}/bär.qcow2"])
    host.has("last", [f"{top}/bär.qcow2", f"{top}/web.qcow2  "])
    host.has("newline", [rf"{top}/new\x0aline.qcow2"])
    host.has("front", [f"{top}/bär.qcow2", f" {top}/web.qcow2"])
    host.has("part", ["images/web.qcow2"])
    blank, last, newline, front, part = host.disks("blank", "last", "newline", "front", "part")
    assert blank == [f"{top}/web.qcow2 ", f"{top}/bär.qcow2"]
    assert f"{top}/web.qcow2  " in last
    assert "No such file" in last
    assert "as they are: vda. Give the disks of machine vm as a list." in newline
    assert "as they are: vdb. Give the disks of machine vm as a list." in front
    assert "as they are: vda. Give the disks of machine vm as a list." in part


def test_a_domain_is_not_taken_for_another_one(host: Host) -> None:
    """Called like the UUID of another one, or the id that it has while it runs, or like another one but for a blank."""
    images = {name: str(host.home / f"{name}.qcow2") for name in ("victim", "uuid", "number", "blank")}
    for path in images.values():
        qemu.create(path, "1M")
    uuid = "0a0a0a0a-1111-2222-3333-444444444444"
    host.has("victim", [images["victim"]], uuid)
    host.answers["domblklist --details --domain 7"] = host.answers[f"domblklist --details --domain {uuid}"]
    host.has(uuid, [images["uuid"]])
    host.has("7", [images["number"]])
    host.has("victim ", [images["blank"]])
    victim, number, blank, both, none = host.disks("victim", "7", "victim ", uuid, "8")
    assert (victim, number, blank) == ([images["victim"]], [images["number"]], [images["blank"]])
    assert "More than one libvirt domain" in both
    assert "There is no libvirt domain 8" in none


def test_a_domain_by_its_uuid_and_a_padded_name(host: Host) -> None:
    uuid = "0a0a0a0a-1111-2222-3333-444444444444"
    path = str(host.home / "web.qcow2")
    qemu.create(path, "1M")
    host.has("web", [path], uuid)
    host.answers["list --all --uuid --name"] = f"{uuid} {'web':30}\n"
    assert host.disks(uuid, "web") == [[path], [path]]


def test_a_domains_name_makes_no_line_of_its_own(host: Host) -> None:
    """Neither one that is not there, nor one of which virsh tells why it tells nothing."""
    absent, broken = "x\nok: [forged]\x1b[31m", "y\x9b31m\u202e"
    host.has(broken, [])
    uuid = host.answers["list --all --uuid --name"].split()[0]
    for name in (uuid, broken):
        del host.answers[f"domblklist --details --domain {name}"]
    none, silent = host.disks(absent, broken)
    assert "There is no libvirt domain x\ufffdok: [forged]\ufffd[31m (" in none
    assert f"of libvirt domain y\ufffd31m\ufffd: error: failed to get domain '{uuid}'" in silent
