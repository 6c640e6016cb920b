"""Names of the networks, known without importing them, which takes seconds; a test compares them."""

_SIZES = ("6", "12", "small", "test")
TRANSLATORS = tuple(f"{family}_{size}" for family in ("resmlp_seq2seq", "transformer_seq2seq") for size in _SIZES)
"""See `visionmlp.create_translator`."""
