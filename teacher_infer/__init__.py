"""Run a trained teacher over a source, once, and leave its softened logits in a store.

The names below are the public API.
"""

from teacher_infer.soften import Softened, soften
from teacher_infer.teachers import Teacher, make_teacher

__all__ = ["Softened", "Teacher", "make_teacher", "soften"]
