"""Answer in the shapes of other services: OpenAI Images and Batch, A1111."""
