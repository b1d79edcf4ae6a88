"""Locks down a sandboxed process before it handles untrusted code."""

from __future__ import annotations

import marshal
import os
import resource
import sys
import time


def start(job_fd: int) -> dict:
    """Drops the remaining privileges, sets the limits, and returns the job.

    Then it reports that the process is ready, and how many seconds of CPU time that took. It leaves
    open the descriptors 0, 1 and 2, which are /dev/null, and those that the job names.
    """
    with open(job_fd, "rb") as file:
        job = marshal.load(file)
    if job["uid"]:
        # Changing to this user drops all capabilities.
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    # Up to this point the parent reads errors from stderr.
    os.dup2(0, 2)
    sys.path.pop(0)
    os.write(job["report"], f"ready {time.process_time()!r}\n".encode())
    return job
