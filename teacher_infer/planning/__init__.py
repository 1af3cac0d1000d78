"""What a teacher's job has to do: spans, keys and what can be reused."""
