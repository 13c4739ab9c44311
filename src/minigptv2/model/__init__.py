"""The three-part model: vision encoder, projector, language model. Knows tensors, nothing of shards or DeepSpeed."""
