"""Sources of documents and questions; base.py says what one is."""
