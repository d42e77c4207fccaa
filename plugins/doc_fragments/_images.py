# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This fragment is private to the collection: no other collection can count on it.

from __future__ import annotations


class ModuleDocFragment:
    """The options that modules for a list of images have (see module_utils/_module/arguments.py), in LINKS and SANDBOX
    what all modules have, in CHAIN the options of those that open what an image stands on, in LIMITED of those that
    return lists out of images, in MOVES of those that move data, in PROGRESS that of those that change images."""

    DOCUMENTATION = r"""
options:
  path:
    description:
      - The image file, or a list of image files. Regular files and block devices are taken.
      - A list is one group, see the description of the module.
      - A single string is one path. With a comma in it, and no such file there, it is refused with
        RV(ignore:error_code=not_a_list), for several files are a list.
    type: list
    elements: str
    required: true
  timeout:
    description:
      - How many seconds the work on one image may take. Without it, as long as it makes headway. The guest that
        works on an image is ended when it has not asked for anything for 60 seconds, or after the time in which the
        slowest storage would have read all that the image holds, 300 seconds and one for each 4 MiB.
      - When the time has passed, the guest is ended, what it has written is undone, and the task fails with
        RV(ignore:error_code=time_limit).
      - A change of a large image that will take longer, as far as can be told when the image has been verified, is
        refused before anything is written, with RV(ignore:error_code=time_too_short) and the time that it would take.
    type: int
  lock_timeout:
    description:
      - How many seconds the task waits for images that others hold. With V(0), which is the default, it fails at once
        with RV(ignore:error_code=in_use).
      - It waits with nothing locked and nothing written, and then begins anew. A task that tells what it
        could not read and does not fail for it (O(ignore:fail_on)) does not wait.
    type: int
    default: 0
    version_added: 0.3.0
"""

    LINKS = r"""
options:
  follow_links:
    description:
      - Whether symbolic links on the way to a file that the task names may lead anywhere.
      - Without it, a link in a directory that somebody else than root or the user who runs the module owns, or may
        write to, is followed only to what the same person owns, to a file only where that person owns its directory as
        well. Otherwise that person would decide which of the files of others the task works on. A link that leads
        further is refused with RV(ignore:error_code=unsafe_link).
      - The same goes for hard links, for links through C(/proc/PID), and for C(..) behind a directory that its owner
        may have moved, into one where others may write.
      - Names that stand in images are judged by other rules, whatever is set here.
    type: bool
    default: false
    version_added: 0.3.0
"""

    LIMITED = r"""
options:
  limit:
    description:
      - How many snapshots, and how many bitmaps, are returned at most for an image, the last ones of its lists. From 0
        to 65536.
      - All records of a result together have at most 768 KiB as JSON, whatever this says, and those of each image at
        least 16 KiB. Those of a single image are counted twice, for they are returned twice.
      - What is left out is told by RV(truncated). Counts are of all of them, and what the task decides, it decides on
        all of them. C(airlock info --output json) prints all that an image has.
    type: int
    default: 1000
    version_added: 0.3.0
"""

    CHAIN = r"""
options:
  allowed_roots:
    description:
      - Directories, files and block devices to which names in the images of the chain may lead, besides the directory
        of the image that has the name. What is below a directory is allowed with it.
      - A data file is written to in another directory than its image's only if it is named here itself.
    type: list
    elements: str
    default: []
    version_added: 0.2.0
  backing_format:
    description:
      - The format of backing files where the image that names one does not record it. Formats are never guessed, so a
        chain with such an image is refused without this.
    type: str
    choices: [qcow2, raw, vmdk]
    version_added: 0.2.0
"""

    MOVES = r"""
options:
  rate_limit:
    description:
      - How many bytes a second are written at most, as a number, or with one of the suffixes V(k), V(K), V(KiB), V(M),
        V(MiB), V(G), V(GiB), V(T) or V(TiB), which are powers of 1024.
      - Without it, as fast as the storage takes them.
    type: str
  timeout:
    description:
      - How many seconds the work may take, all guests together. Without it, as long as it makes headway. A guest is
        ended when it has not asked for anything for 60 seconds, or after a day and four times what the slowest storage,
        or O(ignore:rate_limit), takes for all that the chain holds.
      - When the time has passed, the guest is ended, and the task fails with RV(ignore:error_code=time_limit). No data
        is lost then, run it again with more time.
    type: int
  lock_timeout:
    description:
      - How many seconds the task waits for images that others hold. With V(0), which is the default, it fails at once
        with RV(ignore:error_code=in_use).
      - It waits with nothing locked and nothing written, and then begins anew.
    type: int
    default: 0
    version_added: 0.3.0
"""

    PROGRESS = r"""
options:
  progress_file:
    description:
      - A file that says how far the work has come, for tasks that run long with C(async). Its directory must be
        there. The file stays when the task has ended, and is not written when there is nothing to do.
      - It is one line of JSON with C(bytes_done), C(bytes_total), C(percent), C(bytes_per_second), C(seconds_left) and
        C(finished), for all that the task does together. It is replaced as a whole, so that no reader sees half of it.
      - What is there already must be such a file. Anything else is refused with RV(error_code=bad_progress_file).
    type: str
"""

    SANDBOX = r"""
options:
  memory_limit:
    description:
      - How much memory the guests of the task may use together, as a number of bytes or with one of the suffixes V(M),
        V(MiB), V(G) or V(GiB), which are powers of 1024. At least V(128M), which each guest has; those that work at the
        same time wait for one another, where it is not enough for all of them.
      - A guest counts what refers to each cluster of an image, as a rule in one byte for each. From some 60 million
        clusters on, which is nearly 4 TiB of the usual size, it asks for more than V(128M), but gets no more than the
        image accounts for by what it holds.
      - Where that is too little, all tables of the image are read several times, each time for a part of the clusters,
        and the task warns of it.
      - Without it, a quarter of the host's memory.
    type: str
    version_added: 0.3.0
requirements:
  - Python 3.9 or newer
  - C(/dev/kvm), and the permission to open it for reading and writing
  - The cffi backend for that Python, 1.14 or newer (C(python3-cffi-backend) on Debian and Ubuntu, C(python3-cffi) on
    Fedora and RHEL, C(cffi) on PyPI)
notes:
  - The image is parsed and rewritten inside a small KVM guest that has no devices, no operating system and nothing but
    the image. The host's own code never looks into it, so that a hostile image cannot take over the host.
    RV(ignore:sandbox.layers) says which layers were active.
  - The images are locked in the same way as QEMU locks them. An image that a running virtual machine holds is refused.
  - Paths are taken as they are written, but for C(~/) in front, which is the home of the user who runs the task. A
    C($NAME) or C(~NAME) is not expanded, so that a file of such a name, which another task has found, is that file.
  - An option that is null is refused with RV(ignore:error_code=null_option), an empty path with
    RV(ignore:error_code=empty_path), a truth value, a list or a dictionary for a text with
    RV(ignore:error_code=not_text), a truth value for a number with RV(ignore:error_code=not_a_number), and what is no
    dictionary for one with RV(ignore:error_code=not_a_dictionary). In a template, leave out what is not wanted by
    C(omit). A number that is given for a text is taken as its text.
  - When the Python interpreter that runs the module lacks the cffi backend, the module looks for one of the system's
    interpreters that has it, and continues there.
"""
