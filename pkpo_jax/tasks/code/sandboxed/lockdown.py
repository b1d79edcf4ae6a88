"""What a sandboxed process does first, before it meets code that nobody trusts."""

from __future__ import annotations

import marshal
import os
import resource
import sys
import time


def start(job_fd: int) -> dict:
    """Gives up what is left of privileges, sets the limits, and returns the job.

    It reports that it is ready, and how many seconds of CPU time it took to get there.

    Of the descriptors it leaves 0, 1 and 2, which are /dev/null, and those that the job names.
    """
    with open(job_fd, "rb") as file:
        job = marshal.load(file)
    if job["uid"]:
        # From the user of this id on, no capability is left.
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    # Until here, stderr told the parent what went wrong.
    os.dup2(0, 2)
    sys.path.pop(0)
    os.write(job["report"], f"ready {time.process_time()!r}\n".encode())
    return job
