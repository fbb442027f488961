"""Words in, token ids out: prompt templates, the legacy LLaMA tokenization, training labels. No torch."""
