# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This fragment is private to the collection: no other collection can count on it.

from __future__ import annotations


class ModuleDocFragment:
    """What every module of the collection says about itself."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description:
      - Can run in C(check_mode) and return the predicted C(changed) status without modifying the image.
  diff_mode:
    description:
      - Returns details on what has changed, or would change in C(check_mode), when in diff mode.
  idempotent:
    description:
      - When run twice in a row with the same arguments, the second run does not change anything.
  platform:
    description:
      - Hosts on which the module works.
    support: full
    platforms: linux
    details:
      - Needs an x86_64 host with C(/dev/kvm).
"""

    ACTIONGROUP = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/airlock.images.images) in C(module_defaults) to set defaults for all modules of the collection.
      - C(timeout) and C(lock_timeout) are the options that all of them have. A default for another one makes the
        modules fail that do not have it; set it for each module by its name there.
    support: full
    membership:
      - airlock.images.images
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify anything.
  diff_mode:
    support: N/A
    details:
      - This module does not modify anything.
  idempotent:
    support: full
    details:
      - This module does not modify anything.
"""
