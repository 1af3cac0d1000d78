"""A cache or a source as an endless stream of batches, in an order that one integer resumes."""
