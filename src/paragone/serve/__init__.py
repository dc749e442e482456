"""The OpenAI API for many users: one process for HTTP, one for the engine. Nothing here imports torch but the
engine's process and the one that it is forked from."""
