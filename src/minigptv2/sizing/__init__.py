"""How much memory, traffic and time a run needs, by arithmetic; and how far a running one is from the limit."""
