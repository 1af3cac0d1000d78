"""What can answer for a teacher: inputs in, logits out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from teacher_infer.teachers.module import ModuleTeacher


class Teacher(Protocol):
    def logits(self, inputs: list[np.ndarray[Any, Any]]) -> Any:
        """[P, V] as a torch tensor on the teacher's device, for inputs of P rows each. Raises TeacherError."""
        ...

    def classes(self, example: pa.Table) -> int | None:
        """V for samples like the example's, without running the teacher; None when that cannot be told."""
        ...


TEACHERS: dict[str, Any] = {"module": ModuleTeacher}
