# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: told
type: aggregate
short_description: Write down what a play does, case by case
description:
  - Only for tests. A task whose name begins with C(case:) begins a case. Each line of the file that the environment
    variable E(TOLD) names is a list in JSON of the case, what happened (V(started), V(failed), V(said)), the action,
    and the name of the task, or the message.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "told"
    CALLBACK_NEEDS_ENABLED = True

    case = ""

    def _tell(self, *what: t.Any) -> None:
        with open(os.environ["TOLD"], "a", encoding="utf-8") as file:
            file.write(json.dumps([self.case, *what]) + "\n")

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        if task.name.startswith("case:"):
            self.case = task.name[len("case:") :]
        else:
            self._tell("started", task.action, task.name)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._tell("failed", result._task.action, str(result._result.get("msg", "")))

    def v2_runner_item_on_failed(self, result: t.Any) -> None:
        self._tell("failed", result._task.action, str(result._result.get("msg", "")))

    def v2_runner_on_ok(self, result: t.Any) -> None:
        if result._task.action == "ansible.builtin.debug":
            self._tell("said", result._task.action, result._result.get("msg"))
