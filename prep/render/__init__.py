"""A Record -> ids and targets, by the model's own template and tokenizer."""
