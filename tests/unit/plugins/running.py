# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules run in this process."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
import typing as t
from unittest import mock

import pytest
from ansible.module_utils import _internal
from ansible.module_utils.common.warnings import get_warning_messages
from ansible.module_utils.testing import patch_module_args

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
PLUGINS = "ansible_collections.airlock.images.plugins"

Result = dict[str, t.Any]


def make_tree(tree: pathlib.Path) -> None:
    """Makes ansible_collections.airlock.images importable, from this checkout. tree: an empty directory."""
    namespace = tree / "ansible_collections" / "airlock"
    namespace.mkdir(parents=True)
    (namespace / "images").symlink_to(CHECKOUT)
    sys.path.insert(0, str(tree))
    importlib.invalidate_caches()


def run(capsys: pytest.CaptureFixture[str], module: str, check: bool, diff: bool, arguments: Result) -> Result:
    """The module's answer, with `rc` added. check, diff: the modes."""
    main = importlib.import_module(f"{PLUGINS}.modules.{module}").main
    modes = {"_ansible_check_mode": check, "_ansible_diff": diff}
    earlier = len(get_warning_messages())  # of this process, which each answer repeats
    # Another test may have imported what runs on a controller only; a module's warnings would go there.
    with (
        mock.patch.object(_internal, "is_controller", False),
        patch_module_args({**arguments, **modes}),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    answer: Result = json.loads(capsys.readouterr().out)
    code = ended.value.code
    del ended  # with its traceback: that holds this frame, and all that our callers hold
    return {**answer, "warnings": answer.get("warnings", [])[earlier:], "rc": code}


def run_alone(
    module: str,
    directory: pathlib.Path,
    arguments: Result,
    *,
    limit: int = 0,
    environment: dict[str, str] | None = None,
    redirections: str = "",
) -> Result:
    """The answer of a module in a process of its own. limit: of open files, 0: as it is. redirections: of a shell."""
    script = f"""if True:
        import pathlib, resource, sys
        sys.path.insert(0, {str(CHECKOUT)!r})
        from tests.unit.plugins import running
        running.make_tree(pathlib.Path(sys.argv[1]))
        import importlib
        from ansible.module_utils.testing import patch_module_args
        main = importlib.import_module(f"{{running.PLUGINS}}.modules.{module}").main
        with patch_module_args({arguments!a}):
            if {limit}:
                resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
            main()
    """
    with tempfile.TemporaryDirectory() as tree:
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", script, tree],
            cwd=directory,
            capture_output=True,
            check=False,
            encoding="utf-8",
            env=environment,
        )
    assert done.stdout, done.stderr
    answer: Result = json.loads(done.stdout)
    return {**answer, "rc": done.returncode, "stderr": done.stderr}
