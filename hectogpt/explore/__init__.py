"""A look into a trained model: attention maps, losses, next tokens, and what its heads are worth."""
