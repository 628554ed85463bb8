"""Training: one loop for fine-tuning and distilling, cut and resumed without a trace."""
