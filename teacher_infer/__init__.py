"""Run a trained teacher over a source, once, and leave its softened logits in a store.

The names below are the public API.
"""

from stillhouse_commands import refuse_shadows

refuse_shadows(__file__, "jobs", "storage")

from teacher_infer.soften import Softened, soften  # noqa: E402
from teacher_infer.teachers import Teacher, make_teacher  # noqa: E402

__all__ = ["Softened", "Teacher", "make_teacher", "soften"]
