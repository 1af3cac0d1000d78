"""Models by name or in Hugging Face's form, their weights and what identifies them."""
