"""Train models from a cache of soft targets, or from labels, without the teacher."""
