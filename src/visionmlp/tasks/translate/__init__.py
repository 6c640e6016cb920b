"""Translation: a sentence in one language to a sentence in another."""
