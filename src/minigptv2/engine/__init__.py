"""Training of any `nn.Module` that returns a loss sum and a token count, under DeepSpeed. Nothing of vision or text."""
