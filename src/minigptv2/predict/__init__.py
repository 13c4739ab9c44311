"""A model and questions to answers."""
