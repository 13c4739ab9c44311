"""The chat page, the chat-completions protocol and the terminal: the model for people and for their programs."""
