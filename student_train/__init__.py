"""Train models from a cache of soft targets, or from labels, without the teacher.

The names below are the public API, for training loops of one's own.
"""

from stillhouse_commands import refuse_shadows

refuse_shadows(__file__, "jobs", "storage")

from jobs.models.model_call import apply_model  # noqa: E402
from student_train.losses import count_positions  # noqa: E402
from student_train.losses.cross_entropy import cross_entropy  # noqa: E402
from student_train.losses.forward_kl import forward_kl, kl_divergence  # noqa: E402

__all__ = ["apply_model", "count_positions", "cross_entropy", "forward_kl", "kl_divergence"]
