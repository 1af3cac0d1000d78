"""How a job reaches Ray: connect to it, or be submitted to it."""
