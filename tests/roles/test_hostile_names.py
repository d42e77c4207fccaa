# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files whose names are templates, commands and syntax to somebody on the way: the roles take them for names.

A tenant names the images, and the directory that they lie in; the play finds them, snapshots them, rolls them back,
lets the snapshots go, lists them, rotates their bitmaps and has cron do that. Each ansible-core has rules of its own
for what is a template: here are the one that all tests run with, and the oldest that is supported, in .venv-2.18.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

import pytest
import yaml

from tests.support import qemu

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
OLDEST = CHECKOUT / ".venv-2.18/bin"
MARK = "executed-as-a-template"
RUN = "lookup('ansible.builtin.pipe', 'touch " + MARK + "')"
DIRECTORY = "{{ " + RUN + " }} ~ %h $HOME [a]*"
NAMES = [
    "{{ " + RUN + " }}",
    "{% if " + RUN + " %}{% endif %}{# #}",
    "{{ undefined_variable",
    "!unsafe {{ " + RUN + " }}",
    "'\"quotes\"' \\ \\n",
    "two\nlines: {{ " + RUN + " }}\n",
    "$HOME ${HOME} $(touch " + MARK + ") `touch " + MARK + "`",
    "%h %n 100%",
    "~",
    "~root",
    "a, b # c",
    "[1, 2]",
    "[!x]*?",
    "*",
    "back\\slash[^b]",
    "- é",
    "y\x1b]0;title\x07\nok: [forged]",
    "- É",  # which Jinja takes for the same, unless it is told not to
]
TIME = "20261121T030000Z"

# What is common to all plays: a machine for each file, called as that is; and one list, for who wants that.
START = """
- hosts: localhost
  gather_facts: false
  module_defaults:
    airlock.images.qcow2_snapshot:
      limit: 0 # a role needs no more of an image than the snapshot that it is about
  vars:
    paths: "{{ found.files | map(attribute='path') | sort(case_sensitive=true) }}"
    machines: >-
      {%- set made = namespace(all=[]) -%}
      {%- for path in paths -%}
      {%- set made.all = made.all + [{'name': path | basename, 'disks': [path]}] -%}
      {%- endfor -%}
      {{ made.all }}
    bitmap_rotation_groups: >-
      {{ [{'name': paths[0] | basename, 'disks': paths[:2]}, {'name': 'x', 'disks': paths[2:]}] }}
    pre_upgrade_snapshot_vms: "{{ machines }}"
    pre_upgrade_snapshot_free_space: "1"
    pre_upgrade_snapshot_manifest_directory: "{{ tenant.manifests }}"
  tasks:
    - name: Find the images
      ansible.builtin.find:
        paths: "{{ tenant.top }}"
        recurse: true
        patterns: ["*.qcow2"]
      register: found
"""
END = """
    - name: List the images
      airlock.images.qcow2_info:
        path: "{{ paths }}"
      register: listed
    - name: Keep what is said
      ansible.builtin.template:
        src: "{{ tenant.top }}/../said.j2"
        dest: "{{ tenant.top }}/../said.json"
        mode: "0600"
"""
SAID = """{{ {
  'listed': listed.images | map(attribute='path') | list,
  'facts': (facts | default([])) + [{
    'taken': pre_upgrade_snapshot_result | default({}),
    'rolled': rollback_snapshot_result | default({}),
    'let_go': snapshot_retention_result | default([]),
    'rotated': bitmap_rotation_result | default([]),
  }],
} | to_json }}"""
SCHEDULE = """
    - name: Have cron do it
      ansible.builtin.include_role:
        name: airlock.images.bitmap_rotation
        tasks_from: schedule
"""
UPGRADE = """
    - name: Take a set that YAML takes for a number
      ansible.builtin.include_role: &take
        name: airlock.images.pre_upgrade_snapshot
      vars:
        pre_upgrade_snapshot_set: 20261130
        pre_upgrade_snapshot_vms: [{name: 1, disks: "{{ paths }}"}]
    - name: Roll back to it
      ansible.builtin.include_role: &roll
        name: airlock.images.rollback_snapshot
      vars:
        rollback_snapshot_disks: "{{ paths }}"
        rollback_snapshot_set: 20261130
    - name: Keep what was said
      ansible.builtin.set_fact: &keep
        facts: >-
          {{ (facts | default([])) + [{'taken': pre_upgrade_snapshot_result, 'rolled': rollback_snapshot_result}] }}
    - name: Take another
      ansible.builtin.include_role: *take
      vars: &set
        pre_upgrade_snapshot_set: "{{ paths[0] | basename }}"
        pre_upgrade_snapshot_reason: "{{ paths[0] }}"
    - name: Keep what was said
      ansible.builtin.set_fact: *keep
    - name: Take it again
      ansible.builtin.include_role: *take
      vars: *set
    - name: Write to the disks
      ansible.builtin.command:
        argv: >-
          {{ ['sh', '-ec', 'for disk; do qemu-io -c "write -P 2 0 64k" "$disk"; done', '-'] + paths }}
        expand_argument_vars: false
    - name: Roll back, with what lies in a directory
      ansible.builtin.include_role: *roll
      vars:
        rollback_snapshot_manifests: >-
          {{ query('ansible.builtin.fileglob', tenant.manifests ~ '/*.qcow2.snapshots.yml') }}
        rollback_snapshot_disks: "{{ paths }}"
    - name: Take younger snapshots
      ansible.builtin.command:
        argv: >-
          {{ ['sh', '-ec', 'for disk; do qemu-img snapshot -c "$0"young "$disk"; done', (paths[0] | basename)[:3]]
          + paths }}
        expand_argument_vars: false
    - name: Let the old ones go
      ansible.builtin.include_role:
        name: airlock.images.snapshot_retention
      vars:
        snapshot_retention_disks: "{{ [paths[0]] + [(paths[0] | dirname) ~ '/[!x]*.qcow2'] + paths }}"
        snapshot_retention_prefix: "{{ (paths[0] | basename)[:3] }}"
        snapshot_retention_keep: 1
    - name: Rotate the bitmaps
      ansible.builtin.include_role:
        name: airlock.images.bitmap_rotation
"""


REFUSED = """
    - name: Be refused
      block:
        - name: Look at machines that cannot be rolled back
          ansible.builtin.include_role:
            name: airlock.images.pre_upgrade_snapshot
            tasks_from: check
      rescue:
        - name: Keep what was said
          ansible.builtin.set_fact:
            facts: "{{ [{'said': ansible_failed_result.msg}] }}"
"""

RETENTION = """
    - name: Go on where something was left out
      block:
        - name: Let the old ones go
          ansible.builtin.include_role:
            name: airlock.images.snapshot_retention
          vars:
            snapshot_retention_disks:
              - "{{ others }}/odd/*.qcow2"
              - "{{ others }}/many/*.qcow2"
              - "{{ others }}/none/*"
              - "{{ others }}/slow/*"
            snapshot_retention_prefix: s
            snapshot_retention_keep: 1
            snapshot_retention_pattern_limit: 2
            __snapshot_retention_seconds: 3
      rescue:
        - name: Keep what was said
          ansible.builtin.set_fact:
            facts: "{{ [{'said': ansible_failed_result.msg}] }}"
"""

ROTATION = """
    - name: Go on where a group was not rotated
      block:
        - name: Rotate the bitmaps
          ansible.builtin.include_role:
            name: airlock.images.bitmap_rotation
          vars:
            bitmap_rotation_group_timeout: 1
      rescue:
        - name: Keep what was said
          ansible.builtin.set_fact:
            facts: "{{ [{'said': ansible_failed_result.msg}] }}"
"""


class Tenant:
    """The images of a tenant, and plays about them with one ansible-core."""

    def __init__(self, home: pathlib.Path, commands: pathlib.Path) -> None:
        self.home, self.commands = home, commands
        self.top = home / "top"
        directory = self.top / DIRECTORY
        directory.mkdir(parents=True)
        self.manifests = home / "manifests"
        first = home / "first.qcow2"
        qemu.create(str(first), "1M")
        qemu.must(["qemu-io", "-c", "write -P 1 0 64k", str(first)])
        self.paths = sorted(str(directory / f"{name}.qcow2") for name in NAMES)
        for path in self.paths:
            qemu.copy(str(first), path)
        (home / "said.j2").write_text(SAID)

    def environment(self) -> dict[str, str]:
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/tree"),
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.home / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def play(self, tasks: str, **variables: t.Any) -> t.Any:
        """What the roles' facts say, at each time that the play keeps them."""
        both = {
            "tenant": {"top": str(self.top), "manifests": str(self.manifests)},
            "ansible_python_interpreter": sys.executable,
            **variables,
        }
        (self.home / "play.yml").write_text(START + tasks + END)
        (self.home / "variables.json").write_text(json.dumps(both))
        command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", "@variables.json", "play.yml"]
        done = subprocess.run(
            [str(self.commands / command[0]), *command[1:]],
            cwd=self.home,
            env={**os.environ, **self.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert not list(self.home.rglob(MARK)), done.stdout
        assert "\x1b" not in done.stdout
        assert "\nok: [forged]" not in done.stdout
        said = json.loads((self.home / "said.json").read_text())
        assert said["listed"] == self.paths
        return said["facts"]

    def info(self, path: str) -> t.Any:
        return json.loads(qemu.must(["qemu-img", "info", "--output=json", path]).output)

    def snapshots(self) -> list[list[str]]:
        return [[one["name"] for one in self.info(path).get("snapshots", [])] for path in self.paths]


@pytest.fixture(params=[pathlib.Path(sys.executable).parent, OLDEST], ids=["newest", "oldest"])
def tenant(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Tenant:
    if not (request.param / "ansible-playbook").exists():
        pytest.skip(f"{request.param} is made by make test")
    return Tenant(tmp_path, request.param)


def test_an_upgrade(tenant: Tenant) -> None:
    """One play, since each start of ansible-playbook takes seconds."""
    name = os.path.basename(tenant.paths[0])
    number, first, last = tenant.play(UPGRADE, bitmap_rotation_time=TIME)
    assert (number["taken"]["set"], number["taken"]["changed"]) == ("20261130", True)
    assert (number["rolled"]["set"], number["rolled"]["disks"]) == ("20261130", tenant.paths)

    taken = first["taken"]
    assert (taken["set"], taken["disks"], taken["changed"]) == (name, tenant.paths, True)
    manifests = [str(tenant.manifests / f"{os.path.basename(path)}.{name}.snapshots.yml") for path in tenant.paths]
    assert taken["manifests"] == manifests
    for path, manifest in zip(tenant.paths, manifests):
        held = yaml.safe_load(pathlib.Path(manifest).read_text())
        assert held["vm"] == os.path.basename(path)
        assert (held["set"], held["reason"]) == (name, tenant.paths[0])
        assert [disk["path"] for disk in held["disks"]] == [path]

    assert not last["taken"]["changed"]
    assert (last["rolled"]["set"], sorted(last["rolled"]["disks"])) == (name, tenant.paths)
    for path in tenant.paths:
        assert b"verification failed" not in qemu.must(["qemu-io", "-r", "-c", "read -P 1 0 64k", path]).output
    assert last["let_go"] == [
        {"path": path, "removed": [name], "removed_count": 1, "skipped": False} for path in tenant.paths
    ]
    assert tenant.snapshots() == [["20261130", name[:3] + "young"]] * len(NAMES)
    assert [(one["group"], one["outcome"]) for one in last["rotated"]] == [(name, "rotated"), ("x", "rotated")]
    assert [disk["path"] for one in last["rotated"] for disk in one["disks"]] == tenant.paths


def test_a_refusal(tenant: Tenant) -> None:
    """A name in a message makes no line of its own, and has no terminal act on it."""
    (forged,) = (path for path in tenant.paths if "[forged]" in path)
    qemu.must(["qemu-img", "bitmap", "--add", forged, "b"])
    # Where a manifest lay up to 0.2.0; a task that told where this leads to would have told no text.
    os.symlink(b"\xff\x1b", os.path.join(os.path.dirname(forged), f"{os.path.basename(forged)}.set.snapshots.yml"))
    refused, _nothing = tenant.play(REFUSED, pre_upgrade_snapshot_set="set")
    assert "/y\ufffd]0;title\ufffd\ufffdok: [forged].qcow2 cannot be rolled back" in refused["said"]


def test_a_pattern_in_a_tenants_directory(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than a pattern may mean, names without end, and one that is no text, keep nobody else's from being
    seen to."""
    others = tenant.home / "others"
    names = [
        b"odd/good.qcow2",
        b"odd/\xff\x1b\n.qcow2",
        b"many/a.qcow2",
        b"many/b.qcow2",
        b"many/c.qcow2",
        b"slow/a.qcow2",
    ]
    for name in names:
        path = os.fsencode(others) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        qemu.copy(tenant.paths[0], os.fsdecode(path))
        for snapshot in ("s1", "s2"):
            qemu.must(["qemu-img", "snapshot", "-c", snapshot, os.fsdecode(path)])
    # As find is where names come faster than it reads them.
    endless = tenant.home / "programs/find"
    endless.parent.mkdir()
    endless.write_text(f'#!/bin/sh\ncase "$*" in */slow/*) exec sleep 600;; esac\nexec {shutil.which("find")} "$@"\n')
    endless.chmod(0o755)
    monkeypatch.setenv("PATH", f"{endless.parent}:{os.environ['PATH']}")
    said, kept = tenant.play(RETENTION, others=str(others))
    assert f"{others}/slow/* leads into a directory that takes more than 3 seconds to read." in said["said"]
    assert f"{others}/odd/\ufffd\ufffd\ufffd.qcow2 has bytes in its name that are no UTF-8." in said["said"]
    assert f"{others}/many/*.qcow2 means more than 2 files (snapshot_retention_pattern_limit)." in said["said"]
    assert [(one["path"], one["removed"]) for one in kept["let_go"]] == [(f"{others}/odd/good.qcow2", ["s1"])]
    left = [tenant.info(os.fsdecode(os.fsencode(others) + b"/" + name))["snapshots"] for name in names]
    assert [[one["name"] for one in each] for each in left] == [["s2"], *[["s1", "s2"]] * 5]


def test_a_group_that_takes_long(tenant: Tenant) -> None:
    """However many bitmaps there are whose names are the rotation's own, no other group waits for good."""
    for number in range(60):
        name = f"rotation-day-202001{1 + number % 28:02}T0000{number:02}Z"
        qemu.must(["qemu-img", "bitmap", "--add", tenant.paths[0], name])
    said, kept = tenant.play(ROTATION, bitmap_rotation_time=TIME)
    assert "It has taken more than 1 seconds (bitmap_rotation_group_timeout), with " in said["said"]
    assert kept["rotated"][0]["outcome"] == "failed"
    bitmaps = [tenant.info(path)["format-specific"]["data"]["bitmaps"] for path in tenant.paths]
    assert "auto" in bitmaps[0][55]["flags"]  # that step never came
    assert [each[-1]["name"] for each in bitmaps] == [f"rotation-day-{TIME}"] * len(NAMES)


def test_a_schedule(tenant: Tenant) -> None:
    """What cron runs is what the play would, with the names as they are."""
    etc = tenant.home / "etc %h $X 'a'"
    scheduled = {
        "with": "cron",
        "name": "with-cron_1",
        "command": str(tenant.commands / "ansible-playbook"),
        "python": sys.executable,
        "collections": str(CHECKOUT / "build/tree"),
        "directory": str(etc),
        "cron_directory": str(tenant.home / "cron"),
        "unit_directory": str(tenant.home / "units"),
        "start": False,
        "try": True,
    }
    unsafe = {f"bitmap_rotation_schedule_{key}": value for key, value in scheduled.items()}
    tenant.play(SCHEDULE, **unsafe)
    assert json.loads((etc / "with-cron_1.json").read_text())["groups"] == [
        {"name": os.path.basename(tenant.paths[0]), "disks": tenant.paths[:2]},
        {"name": "x", "disks": tenant.paths[2:]},
    ]
    line = (tenant.home / "cron/with-cron_1").read_text().splitlines()[-1]
    done = subprocess.run(
        ["sh", "-c", line.replace("5 * * * * root ", "").replace("\\%", "%")],
        cwd=tenant.home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tenant.home), **tenant.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tenant.home.rglob(MARK))
    for path in tenant.paths:
        (bitmap,) = tenant.info(path)["format-specific"]["data"]["bitmaps"]
        assert bitmap["name"].startswith("rotation-day-")
