"""Answers questions about images and scores given answers, in memory and from files."""
