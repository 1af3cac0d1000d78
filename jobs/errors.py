"""Errors of jobs, beside those of `storage.base.errors`.

x UsageError, exit 2
  + FolderInUse         a run's folder that another process is writing to
x JobError, exit 1
  + DeviceLost          a device that answers nothing any more
  + ClusterError        a cluster that does not answer
"""

from __future__ import annotations

from storage.base.errors import JobError, UsageError


class FolderInUse(UsageError):
    pass


class DeviceLost(JobError):
    pass


class ClusterError(JobError):
    pass
