"""Text to token ids and back, chat templates, and streams of text."""
