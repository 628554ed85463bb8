"""Models of Hugging Face transformers: from the hub's cache, or from a local folder."""
