# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a timer of root's runs does not lie where somebody else can change it, nor is anything removed there."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
NAME = "rotation"
KINDS = ("directory", "unit_directory", "cron_directory")


def _schedule(home: pathlib.Path, refused: bool, **variables: t.Any) -> dict[str, t.Any]:
    """A task that has the role in it, and fails unless that is refused, or is not."""
    own = {
        "with": "cron",
        "name": NAME,
        "try": False,
        "start": False,
        **{kind: str(home / "own" / kind) for kind in KINDS},
        **variables,
    }
    role = {
        "ansible.builtin.include_role": {"name": "airlock.images.bitmap_rotation", "tasks_from": "schedule"},
        "vars": {
            "bitmap_rotation_groups": [{"name": "db", "disks": ["/srv/db.qcow2"]}],
            **{f"bitmap_rotation_schedule_{key}": value for key, value in own.items()},
        },
    }
    if not refused:
        return role
    wrong = {"ansible.builtin.fail": {"msg": f"{variables} was not refused"}}
    right = {"ansible.builtin.assert": {"that": "ansible_failed_result.error_code | default('') == 'untrusted'"}}
    return {"block": [role, wrong], "rescue": [right]}


def _files(home: pathlib.Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.lstat().st_mode, path.read_text() if path.is_file() else "")
        for path in [home, *home.rglob("*")]
    }


def test_the_directories_are_nobody_elses(tmp_path: pathlib.Path) -> None:
    """One play, since each start of ansible-playbook takes seconds."""
    tenants, roots = tmp_path / "tenants", tmp_path / "roots"
    everybodys = tmp_path / "everybodys"  # as /tmp: what is not there yet, a tenant could make as a link
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    (tenants / "etc").mkdir(parents=True)
    roots.mkdir(mode=0o700)
    for directory in (tenants / "etc", roots):
        for end in ("", ".yml", ".json", ".timer", ".service"):
            (directory / f"{NAME}{end}").write_text("as it was")
    (tenants / "link").symlink_to(roots)
    if os.geteuid() == 0:
        for path in (tenants, *tenants.rglob("*")):
            os.chown(path, 12345, 12345, follow_symlinks=False)
    else:
        tenants.chmod(0o777)
    before = _files(tenants), _files(roots)
    tasks = [
        _schedule(tmp_path, True, state=state, **{kind: str(tenants / where)})
        for kind in KINDS
        for state, where in [("present", "etc"), ("present", "new"), ("present", "link"), ("absent", "link")]
    ]
    tasks += [
        _schedule(tmp_path, True, state=state, **{kind: str(everybodys / "new")})
        for kind in KINDS
        for state in ("present", "absent")
    ]
    tasks.append(_schedule(tmp_path, False))
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    done = subprocess.run(
        [
            *(str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local"),
            *("-e", json.dumps({"ansible_python_interpreter": sys.executable}), "play.yml"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/tree"),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert (_files(tenants), _files(roots)) == before
    assert not os.listdir(everybodys)
    made = sorted(str(path.relative_to(tmp_path / "own")) for path in (tmp_path / "own").rglob("*") if path.is_file())
    assert made == ["cron_directory/rotation", "directory/rotation.json", "directory/rotation.yml"]
