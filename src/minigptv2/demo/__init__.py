"""The demonstrations, made of commands a user would type: the toy world, and the real regime on small real weights."""
