"""Run a trained teacher over a source, once, and leave its softened logits in a store."""
