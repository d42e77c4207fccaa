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
import subprocess
import sys
import typing as t

import pytest
import yaml

from tests.differential.harness import qemu

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
OLDEST = CHECKOUT / ".venv-2.18/bin"
MARK = "executed-as-a-template"
RUN = "lookup('ansible.builtin.pipe', 'touch " + MARK + "')"
DIRECTORY = "{{ " + RUN + " }} ~ %h"
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
    "- é",
]
TIME = "20261121T030000Z"

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Find the images
      ansible.builtin.find:
        paths: "{{ tenant.top }}"
        recurse: true
        patterns: ["*.qcow2"]
      register: found
    - name: Do it
      ansible.builtin.include_role:
        name: "airlock.images.{{ tenant.role }}"
        tasks_from: "{{ tenant.tasks | default('main') }}"
      vars:
        # A machine for each file, called as that is; and one list, for who wants that.
        paths: "{{ found.files | map(attribute='path') | sort }}"
        machines: >-
          {%- set made = namespace(all=[]) -%}
          {%- for path in paths -%}
          {%- set made.all = made.all + [{'name': path | basename, 'disks': [path]}] -%}
          {%- endfor -%}
          {{ made.all }}
        pre_upgrade_snapshot_vms: "{{ machines }}"
        pre_upgrade_snapshot_set: "{{ paths[0] | basename }}"
        pre_upgrade_snapshot_reason: "{{ paths[0] }}"
        pre_upgrade_snapshot_free_space: "0"
        pre_upgrade_snapshot_manifest_directory: "{{ tenant.manifests }}"
        # Found, as what lies in a directory is.
        rollback_snapshot_manifests: "{{ query('ansible.builtin.fileglob', tenant.manifests ~ '/*.yml') }}"
        rollback_snapshot_disks: "{{ paths }}"
        snapshot_retention_disks: "{{ [paths[0]] + [(paths[0] | dirname) ~ '/[!x]*.qcow2'] + paths }}"
        snapshot_retention_prefix: "{{ (paths[0] | basename)[:3] }}"
        bitmap_rotation_groups: "{{ machines }}"
    - name: List the images
      airlock.images.qcow2_info:
        path: "{{ found.files | map(attribute='path') | sort }}"
      register: listed
    - name: Keep what is said
      ansible.builtin.template:
        src: "{{ tenant.top }}/../said.j2"
        dest: "{{ tenant.top }}/../said.json"
        mode: "0600"
"""
SAID = """{{ {
  'listed': listed.images | map(attribute='path') | list,
  'pre_upgrade_snapshot': pre_upgrade_snapshot_result | default({}),
  'rollback_snapshot': rollback_snapshot_result | default({}),
  'snapshot_retention': snapshot_retention_result | default([]),
  'bitmap_rotation': bitmap_rotation_result | default([]),
} | to_json }}"""


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
        (home / "play.yml").write_text(PLAY)
        (home / "said.j2").write_text(SAID)

    def environment(self) -> dict[str, str]:
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/tree"),
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.home / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def play(self, role: str, given: t.Mapping[str, t.Any] = {}, **variables: t.Any) -> t.Any:
        """What the role's facts say."""
        both = {
            "tenant": {"role": role, "top": str(self.top), "manifests": str(self.manifests), **given},
            "ansible_python_interpreter": sys.executable,
            **variables,
        }
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
        said = json.loads((self.home / "said.json").read_text())
        assert said["listed"] == self.paths
        return said[role]

    def info(self, path: str) -> t.Any:
        return json.loads(qemu.must(["qemu-img", "info", "--output=json", path]).output)

    def snapshots(self) -> list[list[str]]:
        return [[one["name"] for one in self.info(path).get("snapshots", [])] for path in self.paths]


@pytest.fixture(params=[pathlib.Path(sys.executable).parent, OLDEST], ids=["newest", "oldest"])
def tenant(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Tenant:
    if not (request.param / "ansible-playbook").exists():
        pytest.skip(f"{request.param} is made by make test")
    return Tenant(tmp_path, request.param)


def test_snapshots(tenant: Tenant) -> None:
    name = os.path.basename(tenant.paths[0])
    taken = tenant.play("pre_upgrade_snapshot")
    assert (taken["set"], taken["disks"], taken["changed"]) == (name, tenant.paths, True)
    assert tenant.snapshots() == [[name]] * len(NAMES)
    manifests = [str(tenant.manifests / f"{os.path.basename(path)}.{name}.snapshots.yml") for path in tenant.paths]
    assert taken["manifests"] == manifests
    for path, manifest in zip(tenant.paths, manifests):
        held = yaml.safe_load(pathlib.Path(manifest).read_text())
        assert held["vm"] == os.path.basename(path)
        assert (held["set"], held["reason"]) == (name, tenant.paths[0])
        assert [disk["path"] for disk in held["disks"]] == [path]
    assert not tenant.play("pre_upgrade_snapshot")["changed"]

    for path in tenant.paths:
        qemu.must(["qemu-io", "-c", "write -P 2 0 64k", path])
    rolled = tenant.play("rollback_snapshot")
    assert sorted(rolled["disks"]) == tenant.paths
    for path in tenant.paths:
        assert b"verification failed" not in qemu.must(["qemu-io", "-r", "-c", "read -P 1 0 64k", path]).output

    for path in tenant.paths:
        qemu.must(["qemu-img", "snapshot", "-c", name[:3] + "young", path])
    let_go = tenant.play("snapshot_retention", snapshot_retention_keep=1)
    assert let_go == [{"path": path, "removed": [name], "skipped": False} for path in tenant.paths]
    assert tenant.snapshots() == [[name[:3] + "young"]] * len(NAMES)


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
    tenant.play("bitmap_rotation", {"tasks": "schedule"}, **unsafe)
    assert json.loads((etc / "with-cron_1.json").read_text())["groups"] == [
        {"name": os.path.basename(path), "disks": [path]} for path in tenant.paths
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


def test_a_rotation(tenant: Tenant) -> None:
    rotated = tenant.play("bitmap_rotation", bitmap_rotation_time=TIME)
    assert [(one["group"], one["outcome"]) for one in rotated] == [
        (os.path.basename(path), "rotated") for path in tenant.paths
    ]
    assert [disk["path"] for one in rotated for disk in one["disks"]] == tenant.paths


def test_a_set_that_yaml_takes_for_a_number(tenant: Tenant) -> None:
    taken = tenant.play("pre_upgrade_snapshot", pre_upgrade_snapshot_set=20261130)
    assert taken["set"] == "20261130"
    assert tenant.snapshots() == [["20261130"]] * len(NAMES)
    rolled = tenant.play("rollback_snapshot", rollback_snapshot_manifests=[], rollback_snapshot_set=20261130)
    assert (rolled["set"], rolled["disks"]) == ("20261130", tenant.paths)
