"""Serves one model as a chat page, an OpenAI-compatible API and a terminal chat."""
