"""Models in Hugging Face's form: a folder of config.json, safetensors and tokenizer.json, or an id on the hub."""

from jobs.models.hugging_face.spec import HuggingFaceSpec

__all__ = ["HuggingFaceSpec"]
