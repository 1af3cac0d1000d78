"""The whole story on one machine, in one process, with one Ray: teacher, cache, students, comparison.

python -m recipes.digits.demo (or make demo). It runs the commands that it prints.
"""

from __future__ import annotations

import sys

import student_train.__main__ as student_train
import teacher_infer.__main__ as teacher_infer
from recipes.story import Chapter, tell

SEEDS = "seed=[0,1,2,3,4]"

STORY: list[Chapter] = [
    (
        "A teacher learns from 300 labelled images.",
        "student_train",
        student_train.main,
        ["recipes/digits/teacher.yaml"],
    ),
    (
        "It runs once over 1,197 unlabelled and 600 test images, and leaves its softened logits.",
        "teacher_infer",
        teacher_infer.main,
        ["recipes/digits/cache.yaml"],
    ),
    (
        "A student 74 times smaller learns from the cache alone: five seeds, no label, no teacher.",
        "student_train",
        student_train.main,
        ["recipes/digits/student.yaml", SEEDS],
    ),
    (
        "The same student learns from the teacher's 300 labels instead: same initial weights, same steps.",
        "student_train",
        student_train.main,
        ["recipes/digits/baseline.yaml", SEEDS],
    ),
    (
        "Side by side, on the 600 test images:",
        "student_train",
        student_train.main,
        ["compare", "./runs/store/digits"],
    ),
]

if __name__ == "__main__":
    sys.exit(tell(STORY))
