"""Models that a factory builds: their code, their weights and what identifies them."""
